"""Root mean square layer normalisation, on all features or on a share of them."""

from __future__ import annotations

import math
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from axon_core import widen
from axon_core.interfaces import Norm


def rms_norm(
    x: Float[Tensor, "... d"], weight: Float[Tensor, " d"], eps: float, partial: float = 1.0
) -> Float[Tensor, "... d"]:
    """Return x / RMS(x) · weight (Eq. 4), the RMS taken over the first ⌈partial · d⌉ features (Section 5).

    RMS(x) = √(mean(x²) + eps). Half precision is normalised in float32 and rounded *before* the multiplication by
    the weight, as Llama does, so that Llama checkpoints give the same bits. The result has the dtype of `x`.

    Source: arXiv 1910.07467, Sections 4 and 5.
    """
    d = x.shape[-1]
    k = max(1, math.ceil(round(d * partial, 6)))  # rounded, as 100 · 0.07 is a little more than 7 in binary
    wide = widen(x)
    if k < d:
        normalised = wide * torch.rsqrt(wide[..., :k].square().mean(-1, keepdim=True) + eps)
    elif x.device.type == "cpu" and torch.is_grad_enabled():
        normalised = cast(Tensor, _Normalise.apply(wide, eps))
    else:
        normalised = functional.rms_norm(wide, (d,), None, eps)
    return (weight * normalised.to(x.dtype)).to(x.dtype)


class _Normalise(torch.autograd.Function):
    """x / RMS(x) with its derivative in closed form: half the time of autograd's, which goes via square and mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,), (y, scale) = gradients, ctx.saved_tensors
        along = torch.linalg.vecdot(g, y).unsqueeze(-1)
        return torch.addcmul(g, y, along, value=-1 / y.shape[-1]).mul_(scale), None


class RMSNorm(Norm):
    """Root mean square layer normalisation `(... d) -> (... d)`: y = x / √(mean(x²) + eps) · g.

    Unlike LayerNorm it neither subtracts the mean nor adds a bias. With `partial` < 1 it is pRMSNorm. The gain g
    starts at 1. Source: arXiv 1910.07467, Sections 4 and 5.
    """

    class Config(Norm.Config):
        """Options of RMSNorm."""

        eps: NonNegativeFloat = 1e-5
        """Added to the mean square, so that a vector of zeros stays one. The paper's Eq. 4 has none; 1e-5 is what
        Llama 2's checkpoints were trained with (their `norm_eps`), Llama 1's with 1e-6."""
        partial: Annotated[float, Field(gt=0, le=1)] = 1.0
        """Share p of the features, the first ⌈p · dim⌉, that the RMS is estimated from: pRMSNorm (Section 5)."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return `x` divided by its root mean square and multiplied by the gain."""
        return rms_norm(x, self.weight, self.config.eps, self.config.partial)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        partial = "" if self.config.partial == 1 else f", partial={self.config.partial}"
        return f"{self.config.dim}, eps={self.config.eps}{partial}"
