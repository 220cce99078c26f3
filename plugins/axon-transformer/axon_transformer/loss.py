"""Label-smoothed cross-entropy of a linear output layer, computed together with it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from axon_core import wide_dtype

_ROWS = 256  # rows whose logits are in memory at once: they fit into a processor's cache


def linear_cross_entropy(
    features: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " n"], smoothing: float = 0.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sums over n tokens of the label-smoothed cross-entropy and of −log p(target), in nats.

    With p = softmax(W x) and ε = `smoothing`: −(1 − ε) log p(target) − ε / v Σ_u log p(u), that is, the target
    distribution gives ε / v to every token of the vocabulary (arXiv 1512.00567, Section 7; arXiv 1706.03762,
    Section 5.4). Only the first sum has a gradient. The gradient is computed along with the sum, a few rows at a time,
    so that only one number per logit is kept; the products are in bfloat16 under autocast.
    """
    return _LinearCrossEntropy.apply(features, weight, targets, smoothing)  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        kind = features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
        x, w = features.to(dtype), weight.to(dtype)
        wide = wide_dtype(dtype)
        n, v = len(x), len(w)
        residuals = x.new_empty(n, v)  # softmax − target distribution: the gradient with respect to the logits
        loss, nll = torch.zeros((), dtype=wide, device=x.device), torch.zeros((), dtype=wide, device=x.device)
        for start in range(0, n, _ROWS):
            rows, y = slice(start, start + _ROWS), targets[start : start + _ROWS, None]
            logprobs = torch.log_softmax((x[rows] @ w.T).to(wide), -1)
            target = logprobs.gather(1, y)
            nll -= target.sum()
            loss -= (1 - smoothing) * target.sum() + smoothing / v * logprobs.sum()
            residual = logprobs.exp_().sub_(smoothing / v)
            residuals[rows] = residual.scatter_add_(1, y, torch.full_like(target, smoothing - 1))
        wanted_x, wanted_w, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            (residuals @ w).to(features.dtype) if wanted_x else None,
            (residuals.T @ x).to(weight.dtype) if wanted_w else None,
        )
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable  # what is kept knows nothing of a second derivative
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w = ctx.saved_tensors
        return None if x is None else gradients[0] * x, None if w is None else gradients[0] * w, None, None
