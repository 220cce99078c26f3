"""4-bit weights: rounding, products on the codes, their rows in any company, and their gradient."""

import shutil

import pytest
import torch
from torch import nn

from axon_core import MODELS, StackedLinear
from axon_core.errors import UsageError
from axon_core.nn import QUANTIZATIONS, levels, pack_products, quantize, rows_depend
from axon_core.nn._native import compile_kernels
from axon_core.nn.int4 import Int4Linear, to_int4
from axon_core.nn.levels import coded_product, levels_product, widen_levels

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
TABLE = torch.tensor([-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1])


def stored(outputs, dim, block, dtype=torch.float32):
    """Random codes and scales of a weight."""
    generator = torch.Generator().manual_seed(outputs * dim + block)
    n = outputs * dim
    codes = torch.randint(0, 256, (-(-n // 2),), dtype=torch.uint8, generator=generator)
    return codes, torch.rand(-(-n // block), generator=generator).to(dtype), TABLE, block


def naive(codes, scales, table, block, shape):
    """The weight in float64, number by number."""
    wide = [float(table[byte >> 4 if half == 0 else byte & 15]) for byte in codes.tolist() for half in (0, 1)]
    n = shape[0] * shape[1]
    each = torch.tensor(wide[:n], dtype=torch.float64) * scales.double()[torch.arange(n) // block]
    return each.view(shape)


@pytest.mark.parametrize("steps", [8, 7])
def test_int4_is_nearer_than_rounding_to_the_largest_number(steps):
    torch.manual_seed(0)
    w = torch.randn(256, 1024)
    codes, scales = to_int4(w)
    assert scales.dtype == torch.bfloat16
    found = naive(codes[: 8 * 512], scales[: 8 * 32], torch.arange(-8.0, 8), 32, (8, 1024))
    back = widen_levels(codes, scales, torch.arange(-8.0, 8), 32, 0, w.numel()).view_as(w)
    torch.testing.assert_close(back[:8].double(), found, rtol=1e-6, atol=0)
    blocks = w.view(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    s = (largest / -8 if steps == 8 else largest.abs() / 7).bfloat16().float()
    plain = (blocks / s).round().clamp(-steps, 7) * s
    ours, theirs = ((blocks - other.view_as(blocks)).square().mean().sqrt() for other in (back, plain))
    assert ours < theirs * (0.97 if steps == 8 else 0.87)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 100])
def test_int4_of_any_length(n, monkeypatch):
    w = torch.randn(n, generator=torch.Generator().manual_seed(n))
    codes, scales = to_int4(w)
    back = widen_levels(codes, scales, torch.arange(-8.0, 8), 32, 0, n)
    assert (back - w).abs().max() <= 0.6 * scales.abs().max()
    monkeypatch.setattr("axon_core.nn.int4._AT_ONCE", 64)
    assert all(torch.equal(a, b) for a, b in zip(to_int4(w), (codes, scales), strict=True))


def test_int4_of_zeros_and_of_nan():
    codes, scales = to_int4(torch.tensor([0.0] * 32 + [float("nan")] * 32))
    back = widen_levels(codes, scales, torch.arange(-8.0, 8), 32, 0, 64)
    assert not back[:32].any() and back[32:].isnan().all()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 640), (5, 100), (8, 333), (16, 64), (40, 600), (639, 1)])
def test_weights_are_widened_from_anywhere(first, count, dtype, kernels):
    assert not kernels or compile_kernels()
    for block, kind in ((64, torch.float32), (32, torch.bfloat16), (16, torch.float32), (8, torch.float32)):
        weight = stored(10, 64, block, kind)
        expected = naive(*weight, (10, 64)).flatten()[first : first + count]
        if kernels:
            found = widen_levels(*weight, first, count, dtype)
        else:
            found = levels._plain_widen(*weight, first, count, dtype == torch.bfloat16).to(dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.float().to(dtype), rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 32, 64, 96, 128, 200, 256, 328])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_products_with_codes_are_those_of_the_widened_weight(dim, block, dtype):
    """Within the rounding of a float32 sum, of d terms and in another order, and of the result."""
    assert compile_kernels()
    for outputs in (1, 5, 37):
        for kind in (torch.float32, torch.bfloat16):
            weight = stored(outputs, dim, block, kind)
            wide = naive(*weight, (outputs, dim))
            x, bias = torch.randn(9, dim).to(dtype), torch.randn(outputs)
            for first in {0, outputs // 2}:
                found = coded_product(x, *weight, first=first, outputs=outputs - first, bias=bias[first:].contiguous())
                exact = x.double() @ wide[first:].T + bias[first:].double()
                magnitude = x.double().abs() @ wide[first:].abs().T + bias[first:].abs().double()
                bound = (dim / 8 + 12) * 2**-24 * magnitude + torch.finfo(dtype).eps / 2 * exact.abs()
                assert found.dtype == dtype
                assert ((found.double() - exact).abs() <= bound).all()


@needs_compiler
@pytest.mark.parametrize("dim", [64, 200, 256])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_row_has_the_same_bits_in_any_company(dim, kernel):
    assert compile_kernels()
    weight, bias = stored(21, dim, 64), torch.randn(21)

    def run(x):
        if kernel:
            return coded_product(x, *weight, first=0, outputs=21, bias=bias)
        return levels._plain_product(x, *weight[:3], bias, 64, 0, 21)

    x = torch.randn(23, dim)
    whole = run(x)
    for n in range(1, 23):
        assert torch.equal(run(x[:n]), whole[:n])
        assert torch.equal(run(x[n:]), whole[n:])


@needs_compiler
def test_a_nan_or_an_infinity_stays_in_its_row():
    x = torch.randn(6, 72)
    x[2, 70], x[4, 0] = float("nan"), float("inf")
    finite = coded_product(x, *stored(7, 72, 64), first=0, outputs=7).isfinite()
    assert finite[[0, 1, 3, 5]].all() and not finite[2].any()


def test_rows_that_lie_elsewhere_are_refused():
    compile_kernels()
    with pytest.raises(RuntimeError):
        coded_product(torch.randn(1, 64), *stored(4, 64, 64), first=2, outputs=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 16, 17, 40, 130])
def test_a_product_and_its_gradient(rows, dtype, monkeypatch):
    monkeypatch.setattr("axon_core.nn.levels._WIDENED", 300)
    monkeypatch.setattr("axon_core.nn.levels._MANY_WIDENED", 200)
    weight = stored(13, 64, 64)
    wide = naive(*weight, (13, 64))
    x = torch.randn(rows, 64).to(dtype).requires_grad_()
    y, given = levels_product(x, *weight, 2, 9), torch.randn(rows, 9).to(dtype)
    y.backward(given)
    tolerance = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 0.1}
    torch.testing.assert_close(y.double(), x.double() @ wide[2:11].T, **tolerance)
    torch.testing.assert_close(x.grad.double(), given.double() @ wide[2:11], **tolerance)


def test_the_product_is_a_proper_operator():
    weight = stored(6, 64, 64)
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(levels_product, (x, *weight, 0, 6))
    assert torch.autograd.gradcheck(lambda x: levels_product(x, *weight, 1, 4), (x,))


def model(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "context": 64, "dim": 64, "n_layers": 2, "n_heads": 4}
    return MODELS["xllama"].build(**{**sizes, **options}).eval()


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_autocast_narrows_the_products_as_of_any_linear_map(name):
    linear, x = StackedLinear(64, [8, 24], bias=True), torch.randn(2, 3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        parts = QUANTIZATIONS.build(name).quantize(linear)(x)
        assert [part.dtype for part in parts] == [part.dtype for part in linear(x)] == [torch.bfloat16] * 2
    sum(part.float().sum() for part in parts).backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@needs_compiler
@pytest.mark.parametrize("dim", [64, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_has_rows_that_do_not_depend_on_their_number(dim, dtype):
    small = quantize(model(dim=dim), "int4").to(dtype)
    packed, tokens = pack_products(small), torch.randint(258, (5, 9))
    with torch.no_grad():
        expected = small(tokens).float()
        difference = (packed(tokens).float() - expected).abs().max() / expected.abs().max()
        assert difference < (0.05 if dtype == torch.bfloat16 else 1e-5)
    named = rows_depend(packed, lambda: packed(tokens))
    assert not any("levels" in call or "mm" in call for call in named)
    assert any("levels_product" in call for call in rows_depend(small, lambda: small(tokens)))


@needs_compiler
def test_packed_maps():
    original = StackedLinear(64, (3, 5, 9), bias=True)
    packed, x = pack_products(Int4Linear(original)), torch.randn(4, 64)
    with torch.no_grad():
        for one, expected in zip(packed(x), Int4Linear(original)(x), strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)
        assert torch.equal(packed.compute_maps(x, 1, 3), torch.cat(packed(x)[1:], -1))
        assert torch.equal(packed.bfloat16()(x)[0], pack_products(Int4Linear(original))(x)[0])  # x decides
    with pytest.raises(UsageError, match="packed weights have no gradients"):
        packed(x.requires_grad_())
    with pytest.raises(UsageError, match="cannot be saved"):
        packed.state_dict()
    with pytest.raises(UsageError, match="cannot be replaced"):
        packed.load_state_dict({"weight": original.weight}, strict=False)


def test_sizes_without_a_kernel():
    """Rows of a length that is no multiple of 8 run in plain torch, with the same rows."""
    layer = Int4Linear(nn.Linear(20, 6))
    packed, x = pack_products(layer), torch.randn(5, 20)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=0, atol=1e-5)
        assert torch.equal(packed(x[:1]), packed(x)[:1])
