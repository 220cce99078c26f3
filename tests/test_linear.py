"""`affine` and its float32 product by oneDNN, against float64, torch's own, and under transformations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from axon_core.nn import linear as module
from axon_core.nn.linear import Linear, StackedLinear, affine, product


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `affine` take oneDNN whatever the processor and however small the product."""
    monkeypatch.setattr(module, "_ONEDNN", True)
    monkeypatch.setattr(module, "_ROWS", 1)
    monkeypatch.setattr(module, "_PRODUCTS", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.Size]]:
    """The shapes that `affine` gives to oneDNN."""
    found: list[tuple[torch.Size, torch.Size]] = []

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found.append((a.shape, b.shape))
        return product(a, b)

    monkeypatch.setattr(module, "product", noted)
    return found


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that no number is off by more than 1e-6 of the largest: sums of products may cancel."""
    assert (found.double() - expected.double()).abs().max() <= 1e-6 * expected.abs().max()


def test_product_is_a_proper_operator() -> None:
    a, b = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    torch.library.opcheck(product, (a, b))
    torch.library.opcheck(product, (torch.randn(4, 6).T, torch.randn(4, 5).T))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
def test_values_and_gradients_are_those_of_float64(onednn: None, shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    x, weight, g = normal(*shape), normal(5, 7), normal(*shape[:-1], 5)
    given = [x, weight, normal(5)] if bias else [x, weight]
    results = []
    for dtype in (torch.float64, torch.float32):
        tensors = [tensor.to(dtype).requires_grad_() for tensor in given]
        y = (affine if dtype == torch.float32 else functional.linear)(*tensors)
        results.append([y, *torch.autograd.grad(y, tensors, g.to(dtype))])
    for expected, found in zip(*results, strict=True):
        assert_near(found, expected)


def test_strided_views_and_second_derivatives(onednn: None) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(4, 6, generator=generator)
    weight = torch.randn(3, 5, generator=generator).T  # columns, not rows, lie together
    x = wide[:, ::2].requires_grad_()
    (first,) = torch.autograd.grad(affine(x, weight).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    y = x.detach().double().requires_grad_()
    (first64,) = torch.autograd.grad(functional.linear(y, weight.double()).pow(3).sum(), y, create_graph=True)
    (second64,) = torch.autograd.grad(first64.square().sum(), y)
    assert_near(first, first64)
    assert_near(second, second64)


def test_frozen_inputs_get_no_gradient(onednn: None) -> None:
    x, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    affine(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(2, 4))


def test_only_large_float32_products_outside_autocast_go_to_onednn(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[torch.Size, torch.Size]]
) -> None:
    monkeypatch.setattr(module, "_ONEDNN", True)
    x, weight = torch.randn(2, 128, 256), torch.randn(256, 256)
    affine(x[:, :32], weight)  # few rows
    affine(x, weight[:8])  # a small product
    affine(x.double(), weight.double())
    affine(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert affine(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(module, "_ONEDNN", False)
    affine(x, weight)
    assert not calls
    monkeypatch.setattr(module, "_ONEDNN", True)
    found = affine(x, weight)
    assert calls == [((256, 256), (256, 256))]
    assert_near(found, functional.linear(x.double(), weight.double()))


def test_layers_use_it(onednn: None, calls: list[tuple[torch.Size, torch.Size]]) -> None:
    x = torch.randn(3, 8)
    layer, stacked = Linear(8, 4), StackedLinear(8, (2, 3))
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(torch.cat(stacked(x), -1), functional.linear(x, stacked.weight))
    assert calls == [((3, 8), (4, 8)), ((3, 8), (5, 8))]


def test_compiled_training_calls_it(onednn: None) -> None:
    layer = Linear(8, 4)
    x = torch.randn(3, 8)
    compiled = torch.compile(lambda x: layer(x).square().sum(), backend="aot_eager")
    compiled(x).backward()
    found = layer.weight.grad
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)
