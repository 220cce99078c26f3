"""Feed-forwards of X-Llama: the interface, the registry, and the two that every X-Llama can have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import relu

from axon_core import config
from axon_core.interfaces import Scope, TensorSplit
from axon_core.nn import GatedSiLU, Linear, StackedLinear
from axon_core.registry import Registry

__all__ = ["FEED_FORWARDS", "FeedForwardLayer", "SquaredReLU", "SwiGLU"]


class FeedForwardLayer(nn.Module, ABC):
    """The feed-forward of a layer, `(b n d) -> (b n d)`: each token's result depends on that token alone."""

    class Config(config.Config):
        """What X-Llama passes down to every feed-forward."""

        dim: PositiveInt
        """Features d of a token."""
        hidden_dim: PositiveInt
        """Hidden features."""
        layer: NonNegativeInt = 0
        """Index of the layer, counted from 0."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that tests build it with, on top of what X-Llama passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Float[Tensor, "b n d"], scope: Scope) -> Float[Tensor, "b n d"]:
        """Return the features after it; by `scope.valid` it knows which tokens are padding."""

    def tensor_split(self) -> TensorSplit | None:
        """How its hidden features are divided among processes that compute each example together; by default not."""
        return None


class SwiGLU(FeedForwardLayer):
    """SwiGLU (arXiv 2002.05202, Section 2, Eq. 6): `(silu(x W) ⊙ x V) W₂`; the rows of `gate_up` are W's, then V's."""

    def __init__(self, config: FeedForwardLayer.Config) -> None:
        super().__init__(config)
        self.gate_up = StackedLinear(config.dim, (config.hidden_dim, config.hidden_dim), names=("gate", "up"))
        self.gate = GatedSiLU()
        self.down = Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope) -> Float[Tensor, "b n d"]:
        """Return the gated features, mapped back."""
        return self.down(self.gate(*self.gate_up(x)))

    def tensor_split(self) -> TensorSplit:
        """Each process has some of the hidden features."""
        return TensorSplit(columns=["gate_up"], rows=["down"], units=self.down.in_features, unit="hidden features")


class SquaredReLU(FeedForwardLayer):
    """Squared ReLU (arXiv 2109.08668, Section 3): `relu(x W)² W₂`, with no gate: two matrices instead of three."""

    def __init__(self, config: FeedForwardLayer.Config) -> None:
        super().__init__(config)
        self.up = Linear(config.dim, config.hidden_dim, bias=False)
        self.down = Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope) -> Float[Tensor, "b n d"]:
        """Return the squared features, mapped back."""
        return self.down(relu(self.up(x)).square())

    def tensor_split(self) -> TensorSplit:
        """Each process has some of the hidden features."""
        return TensorSplit(columns=["up"], rows=["down"], units=self.down.in_features, unit="hidden features")


FEED_FORWARDS: Registry[FeedForwardLayer] = Registry("feed_forward", FeedForwardLayer)
"""Feed-forwards by key; a plugin adds one in the entry-point group `axon.v1.feed_forward`."""
