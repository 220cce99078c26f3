"""Layer normalisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from axon_core.interfaces import Norm


class LayerNorm(Norm):
    """Layer normalisation `(... d) -> (... d)`: (x − mean x) / √(var x + ε) · weight + bias.

    Mean and (biased) variance are those of each vector by itself, at least in float32. Source: arXiv 1607.06450, Eq. 3,
    as used by arXiv 1706.03762, Section 3.1.
    """

    class Config(Norm.Config):
        """Settings of layer normalisation."""

        eps: PositiveFloat = 1e-5
        """ε, added to the variance; neither paper states a value."""
        bias: bool = True
        """Whether a learned bias is added."""

    config: Config
    examples = ({}, {"bias": False})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(config.dim))
        self.bias = nn.Parameter(torch.zeros(config.dim)) if config.bias else None

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return `x` with mean 0 and variance 1 along its last axis, then scaled and shifted."""
        # Torch's kernel keeps its statistics in float32 for half-precision input; autocast may return float32.
        return layer_norm(x, (self.config.dim,), self.weight, self.bias, self.config.eps).to(x.dtype)
