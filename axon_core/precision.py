"""The least precision that numbers are computed in: float32, whatever the weights are stored in."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["wide_dtype", "widen"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64.

    >>> wide_dtype(torch.bfloat16), wide_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def widen(x: Shaped[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return `x` in float32 at least: half precision and integers become float32, float64 stays as it is."""
    return x.to(wide_dtype(x.dtype))
