"""Packed products: right, and with rows whose bits do not depend on their number, their place or their neighbours."""

import pytest
import torch
from torch import nn

from axon_core import MODELS, QKV, UsageError
from axon_core.interfaces import Scope
from axon_core.nn import (
    Linear,
    PackedLinear,
    StackedLinear,
    TiedLinear,
    attend,
    pack_products,
    pack_weight,
    packed_product,
    rows_depend,
)
from axon_core.nn import packed as packed_module
from axon_core.nn.int8 import Int8Linear
from axon_core.nn.quantization import quantize

NUMBERS = [*range(1, 41), 64, 300]
KINDS = ["float32", "bfloat16", "int8", "int8 of bfloat16", "float64", "float16"]


def layer(kind: str, d: int, r: int) -> tuple[nn.Module, torch.dtype]:
    dtype = getattr(torch, kind.split()[-1] if kind != "int8" else "float32")
    linear = nn.Linear(d, r).to(dtype)
    return (Int8Linear(linear) if "int8" in kind else linear), dtype


@pytest.fixture(params=["compiled", "plain"])
def version(request, monkeypatch):
    """Both versions of the operator: as this machine compiles it, and in plain torch."""
    if request.param == "plain":
        monkeypatch.setattr(torch.ops.axon, "packed_product", packed_module._plain_product)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "r"), [(1, 1), (7, 5), (64, 48), (129, 100), (1025, 49), (768, 333)])
def test_a_row_has_the_same_bits_in_any_company(kind, d, r, version):
    torch.manual_seed(0)
    original, dtype = layer(kind, d, r)
    product, x = pack_products(original), torch.randn(300, d).to(dtype)
    with torch.no_grad():
        expected = torch.cat([product(x[i : i + 1]) for i in range(300)])
        for n in NUMBERS if version == "compiled" else (2, 17, 300):
            start = 300 - n  # so that each row stands at another index
            assert torch.equal(product(x[start:]), expected[start:]), n
            assert torch.equal(product(x[:n]), expected[:n]), n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "r"), [(1, 1), (7, 5), (64, 48), (129, 100), (1025, 49), (3000, 70)])
def test_values_are_those_of_the_product(kind, d, r, version):
    torch.manual_seed(1)
    original, dtype = layer(kind, d, r)
    x = torch.randn(9, d).to(dtype)
    weight = original.weight.double() * (original.scale.double().unsqueeze(-1) if "int8" in kind else 1)
    expected = x.double() @ weight.T + original.bias.double()
    with torch.no_grad():
        y = pack_products(original)(x)
    assert y.dtype == dtype
    size = x.double().abs() @ weight.abs().T + original.bias.double().abs()  # what rounding is relative to
    unit = {torch.float64: 1e-15, torch.float32: 1e-6}.get(dtype, 1e-6) + ("int8" in kind) * 1e-4
    rounded = expected.abs() * torch.finfo(dtype).eps  # of the result
    assert ((y.double() - expected).abs() <= size * unit + rounded).all()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_threads_change_no_bit(kind):
    torch.manual_seed(2)
    original, dtype = layer(kind, 96, 5000)
    product, x, threads = pack_products(original), torch.randn(21, 96).to(dtype), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with torch.no_grad():
                found.append(product(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_holds_outputs_side_by_side(kind):
    weight = layer(kind, 5, 3)[0].weight.detach()
    panels = pack_weight(weight)
    _, steps, width, group = panels.shape
    flat = panels.transpose(1, 2)
    flat = (flat[..., [0, 2, 1, 3]] if group == 4 else flat).reshape(-1, steps * group)
    assert torch.equal(flat[:3, :5], weight.float() if kind == "float16" else weight)
    assert not flat[3:].any() and not flat[:, 5:].any() and flat.shape[0] % width == 0


def test_no_rows():
    assert pack_products(nn.Linear(3, 4))(torch.empty(0, 3)).shape == (0, 4)


def test_infinities_and_nans_stay_in_their_row():
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    with torch.no_grad():
        for product in (pack_products(nn.Linear(8, 5)), pack_products(Int8Linear(nn.Linear(8, 5)))):
            finite = product(x).isfinite()
            assert finite[[0, 2]].all() and not finite[1].any()


def test_stacked_maps_stay_apart():
    original, x = StackedLinear(8, (3, 5)), torch.randn(2, 8)
    with torch.no_grad():
        for one, expected in zip(pack_products(original)(x), original(x), strict=True):
            torch.testing.assert_close(one, expected)
        assert [one.shape[-1] for one in pack_products(Int8Linear(original))(x)] == [3, 5]


def test_a_gradient_is_refused():
    with pytest.raises(UsageError, match="packed weights have no gradients"):
        pack_products(nn.Linear(3, 4))(torch.randn(2, 3, requires_grad=True))


def test_it_can_be_neither_cast_nor_saved():
    product = pack_products(nn.Linear(3, 4))
    with pytest.raises(UsageError, match="cannot be cast; cast the original model"):
        product.bfloat16()
    with pytest.raises(UsageError, match="cannot be saved; save the original model"):
        product.state_dict()
    assert product.to("cpu") is product


def test_sizes_that_do_not_fit():
    with pytest.raises(UsageError, match="must have 4 inputs and 9 outputs, got panels"):
        packed_product(torch.randn(2, 4), pack_weight(torch.randn(9, 3)), 9)


def model(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "context": 512, "dim": 48, "n_layers": 2, "n_heads": 4}
    return MODELS["xllama"].build(**{**sizes, **options}).eval()


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_packed_model_computes_what_the_model_does(kind, tie_embeddings):
    original = model(tie_embeddings=tie_embeddings)
    original = original.bfloat16() if kind == "bfloat16" else quantize(original) if kind == "int8" else original
    copy, tokens = pack_products(original), torch.randint(258, (2, 9))
    assert not any(isinstance(module, nn.Linear | Int8Linear) for module in copy.modules())
    assert any(isinstance(module, nn.Linear | Int8Linear) for module in original.modules())
    assert copy.embedding.weight.data_ptr() == original.embedding.weight.data_ptr()
    with torch.no_grad():
        expected = original(tokens).float()
        difference = (copy(tokens).float() - expected).abs().max() / expected.abs().max()
    assert difference < (0.03 if kind == "bfloat16" else 1e-3)


def test_a_layer_of_a_third_party_stays():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    both = pack_products(nn.Sequential(Linear(3, 3), Doubled(3, 3)))
    assert [type(module) for module in both] == [PackedLinear, Doubled]


def test_products_of_a_third_party_are_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Sequential(nn.Conv1d(4, 4, 1))

        def forward(self, x):
            return self.second((self.first(x) @ torch.eye(4)).T)

    mixed, x = pack_products(Mixed()), torch.randn(3, 4)
    assert rows_depend(mixed, lambda: mixed(x)) == ["the model: aten.mm", "second.0: aten.convolution"]
    assert rows_depend(mixed.first, lambda: mixed.first(x)) == []
    assert not mixed.first._forward_hooks and not mixed.first._forward_pre_hooks
    found = rows_depend(nn.Module(), lambda: attend(*torch.randn(3, 1, 4, 2, 8), Scope.over(torch.zeros(1, 4))))
    assert len(found) == 1 and "attention" in found[0]
    unpacked = quantize(model())
    assert "head: axon.int8_product" in rows_depend(unpacked, lambda: unpacked(torch.tensor([[1, 2]])))


def test_packed_and_8_bit_projections_know_their_heads():
    qkv = QKV(8, 2, 1, 4)
    assert (
        pack_products(qkv).heads
        == quantize(qkv, "int8").heads
        == pack_products(quantize(qkv, "int8")).heads
        == (2, 1, 1)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("make", [quantize, pack_products, lambda qkv: pack_products(quantize(qkv))])
def test_projections_for_cross_attention_are_parts_of_the_whole(make, bias):
    """Also where heads do not end at a panel's edge."""
    torch.manual_seed(0)
    qkv = QKV(24, 5, 5, 7, bias=bias)
    other, x = make(qkv), torch.randn(2, 3, 24)
    with torch.no_grad():
        whole = other(x)
        for part, expected in zip((other.query(x), *other.key_value(x)), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)
        for part, expected in zip(whole, qkv(x), strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=0.05)
        if make is not quantize:
            assert all(torch.equal(a, b) for a, b in zip(whole, (other.query(x), *other.key_value(x)), strict=True))


@pytest.mark.parametrize("make", [quantize, pack_products])
def test_a_tied_head_is_a_map_of_its_own_and_the_embedding_stays(make):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(40, 24)
            self.head = TiedLinear(self.embedding)

    model, x = Tied(), torch.randn(3, 24)
    assert list(model.state_dict()) == ["embedding.weight"]
    assert torch.equal(model.head(x), x @ model.embedding.weight.T)
    other = make(model)
    assert type(other.head) is (Int8Linear if make is quantize else PackedLinear)
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    torch.testing.assert_close(other.head(x), model.head(x).detach(), rtol=0, atol=0.1 if make is quantize else 1e-5)
