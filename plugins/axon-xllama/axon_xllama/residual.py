"""Residual streams of X-Llama: the interface, the registry, and the one that every X-Llama can have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import Count, config
from axon_core.registry import Registry

__all__ = ["RESIDUAL_STREAMS", "PlainResidual", "ResidualStream"]


class ResidualStream(nn.Module, ABC):
    """What a layer reads of the layers before it, `(b n d), … -> (b n d)`; each token's depends on that token alone."""

    class Config(config.Config):
        """What X-Llama passes down to every residual stream."""

        dim: PositiveInt
        """Features d of a token."""
        n_layers: Count
        """Number of layers."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that tests build it with, on top of what X-Llama passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Float[Tensor, "b n d"], past: list[Tensor]) -> Float[Tensor, "b n d"]:
        """Return what the next layer reads, or the last norm after the last layer.

        Args:
            x: first the embeddings X_0, then the output X_i of each layer in turn.
            past: what the stream itself has kept in this pass, empty at its beginning.
        """


class PlainResidual(ResidualStream):
    """The last layer's output X_i itself, as in Llama 2 (arXiv 2307.09288, Section 2.2)."""

    def forward(self, x: Float[Tensor, "b n d"], past: list[Tensor]) -> Float[Tensor, "b n d"]:
        """Return `x`."""
        return x


RESIDUAL_STREAMS: Registry[ResidualStream] = Registry("residual", ResidualStream)
"""Residual streams by key; a plugin adds one in the entry-point group `axon.v1.residual`."""
