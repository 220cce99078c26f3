"""Sinusoidal positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import ConfigError


def sinusoids(
    positions: Int[Tensor, ...], dim: int, *, base: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "... d"]:
    """Return the sinusoidal encoding of `positions`, to be added to the embeddings, computed in `dtype`.

    PE(p, 2i) = sin(p / base^(2i/d)), PE(p, 2i + 1) = cos(p / base^(2i/d)): the wavelengths run from 2π to base · 2π,
    and PE(p + s) is a linear function of PE(p). Source: arXiv 1706.03762, Section 3.5.

    Raises:
        ConfigError: `dim` is odd, so that its last feature has no pair.
    """
    if dim % 2:
        raise ConfigError([(("dim",), f"sinusoidal positions need an even dim, got {dim}")])
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=dtype, device=positions.device) / dim)
    angles = positions.to(dtype).unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
