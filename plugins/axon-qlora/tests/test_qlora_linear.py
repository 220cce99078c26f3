"""Linear maps in NF4: what they compute, their gradient, their memory, and models made of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from axon_core import MODELS, Linear, StackedLinear
from axon_core.checkpoint import weightless
from axon_core.nn import TiedLinear, pack_products, quantize, rows_depend
from axon_core.testing import conformance
from axon_qlora import NF4Linear, from_double, from_nf4, to_double, to_nf4

test_conformance = conformance("axon-qlora")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dim", [64, 32, 20, 7])
def test_the_weight_is_the_functions(dim, double):
    """Also where a block of 64 spans rows."""
    torch.manual_seed(0)
    original = nn.Linear(dim, 10)
    codes, absmax = to_nf4(original.weight)
    absmax = from_double(*to_double(absmax)) if double else absmax
    layer = NF4Linear(original, double=double)
    assert torch.equal(layer.widened(), from_nf4(codes, absmax, (10, dim)))
    x = torch.randn(3, dim)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.widened().T + original.bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_gradient_of_the_input(rows, dtype, monkeypatch):
    monkeypatch.setattr("axon_core.nn.levels._WIDENED", 200)  # several pieces
    torch.manual_seed(0)
    layer = NF4Linear(nn.Linear(64, 12)).to(dtype)
    x = torch.randn(2, rows, 64, dtype=dtype, requires_grad=True)
    given = torch.randn(2, rows, 12, dtype=dtype)
    layer(x).backward(given)
    expected = given.double() @ layer.widened().double()
    assert x.grad.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=tolerance)
    assert not list(layer.parameters())


def test_gradients_of_every_order():
    layer = NF4Linear(nn.Linear(16, 3)).double()
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,)) and torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("double", [False, True])
def test_made_without_weights_it_rounds_them_when_they_come(double):
    torch.manual_seed(0)
    original = nn.Linear(64, 5)
    with weightless():
        bare = nn.Linear(64, 5)
    layer = NF4Linear(bare, double=double)
    assert layer.weight.is_meta
    for name, tensor in original.state_dict().items():
        layer.load_state_dict({name: tensor}, strict=False, assign=True)
    for (name, buffer), (_, expected) in zip(
        layer.named_buffers(), NF4Linear(original, double=double).named_buffers(), strict=True
    ):
        assert torch.equal(buffer, expected), name


def test_cast_its_scales_stay_float32():
    layer = NF4Linear(nn.Linear(64, 5)).bfloat16()
    assert layer.weight.dtype == layer.absmax.dtype == torch.uint8
    assert layer.nested.dtype == layer.offset.dtype == layer.table.dtype == torch.float32
    assert layer.bias.dtype == torch.bfloat16


def test_stacked_and_tied_maps():
    torch.manual_seed(0)
    stacked, x = StackedLinear(32, (3, 6, 2)), torch.randn(4, 32)
    layer = NF4Linear(stacked)
    assert layer.local_rows == [3, 6, 2] and [y.shape[1] for y in layer(x)] == [3, 6, 2]
    torch.testing.assert_close(layer.compute_maps(x, 1, 2), layer(x)[1], rtol=0, atol=1e-6)
    embedding = nn.Embedding(9, 32)
    torch.testing.assert_close(NF4Linear(TiedLinear(embedding)).widened(), embedding.weight.detach(), rtol=0, atol=0.7)


def test_a_weight_takes_little_more_than_4_bits():
    def bits(layer):
        return 8 * sum(b.nbytes for name, b in layer.named_buffers() if name != "table") / (1024 * 1024)

    original = Linear(1024, 1024, bias=False)
    assert bits(NF4Linear(original, double=False)) == 4.5
    assert bits(NF4Linear(original)) == pytest.approx(4.126953, abs=1e-4)


def test_a_model_in_nf4():
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "context": 64, "dim": 64, "n_layers": 2, "n_heads": 4}
    model = MODELS["xllama"].build(**sizes).eval()
    small, tokens = quantize(model, {"type": "nf4", "double": False}), torch.randint(258, (2, 9))
    assert sum(isinstance(module, NF4Linear) for module in small.modules()) == 2 * 4 + 1
    with torch.no_grad():
        difference = (small(tokens) - model(tokens)).square().mean() / model(tokens).square().mean()
        assert 0 < difference < 0.1
        packed = pack_products(small)
        torch.testing.assert_close(packed(tokens), small(tokens), rtol=0, atol=1e-4)
    assert not any("levels_product" in call for call in rows_depend(packed, lambda: packed(tokens)))
