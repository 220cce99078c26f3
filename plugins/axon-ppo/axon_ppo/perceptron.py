"""Model `perceptron`: the small network for policies and value functions that observe a vector."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from axon_core.interfaces import Model

__all__ = ["Perceptron"]


class Perceptron(Model):
    """Linear layers with tanh between them, `(… i) -> (… o)` (arXiv 1707.06347, Section 6.1).

    Weights are initialised orthogonally, which is not in the paper but in its code (arXiv 2005.12729).
    """

    class Config(Model.Config):
        """Its sizes."""

        inputs: PositiveInt
        """Number of inputs i."""
        outputs: PositiveInt
        """Number of outputs o."""
        hidden: tuple[PositiveInt, ...] = (64, 64)
        """Sizes of the hidden layers (Section 6.1: two of 64)."""
        gain: PositiveFloat = 0.01
        """The singular values of the last layer at the start: small, so that a policy starts nearly indifferent."""

    config: Config
    examples = ({"inputs": 3, "outputs": 2}, {"inputs": 3, "outputs": 2, "hidden": ()})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        sizes = (config.inputs, *config.hidden, config.outputs)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        for layer in self.layers:
            layer = cast(nn.Linear, layer)
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer is not self.layers[-1] else config.gain)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """Return the last layer's outputs."""
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)
