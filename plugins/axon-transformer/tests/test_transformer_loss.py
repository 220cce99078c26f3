"""The fused loss against torch's cross-entropy, a naive float64 formula, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from axon_transformer.loss import linear_cross_entropy


def example(n: int = 600, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 8, generator=generator, dtype=dtype).requires_grad_() for rows in (n, 11))
    return x, w, torch.randint(11, (n,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_value_and_gradient_are_those_of_torchs_cross_entropy(smoothing: float) -> None:
    x, w, y = example()  # more rows than are computed at once
    loss, nll = linear_cross_entropy(x, w, y, smoothing)
    expected = cross_entropy(x @ w.T, y, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, cross_entropy(x @ w.T, y, reduction="sum"))
    assert not nll.requires_grad
    for got, want in zip(torch.autograd.grad(3 * loss, (x, w)), torch.autograd.grad(3 * expected, (x, w)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_known_answer() -> None:
    """Two tokens with probabilities 3/4 and 1/4; the target is the first, smoothed to 0.9 + 0.05 and 0.05."""
    loss, nll = linear_cross_entropy(
        torch.tensor([[1.0]]), torch.tensor([[math.log(3)], [0.0]]), torch.tensor([0]), 0.1
    )
    assert nll.item() == pytest.approx(-math.log(0.75))
    assert loss.item() == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25))


def test_finite_differences_agree() -> None:
    x, w, y = example(5, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: linear_cross_entropy(x, w, y, 0.1)[0], (x, w))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x, w, y = example(5)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(x, w, y, 0.1)[0] ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_under_autocast_it_is_nearly_the_same_and_gradients_keep_their_dtype() -> None:
    x, w, y = example()
    want = linear_cross_entropy(x, w, y, 0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(x, w, y, 0.1)[0]
    assert got.dtype == torch.float32 and got.item() != want.item()
    torch.testing.assert_close(got, want, rtol=1e-2, atol=0)
    for one, other in zip(torch.autograd.grad(got, (x, w)), torch.autograd.grad(want, (x, w)), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()
