"""What the parts of a layer read of the tokens just before: the interface, the registry, and nothing, as in Llama."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from axon_core import config
from axon_core.interfaces import LayerCache, Scope, StateSpec
from axon_core.registry import Registry

__all__ = ["TOKEN_MIXERS", "TokenMixer", "Unmixed"]


class TokenMixer(nn.Module, ABC):
    """Mixes each token's features with those of the tokens just before, `(b n d) -> (b n d)`.

    X-Llama has two in a layer: what the attention and the feed-forward read passes through them after the norm. One
    that reads earlier tokens declares what it keeps of them in `state`, as an attention does.
    """

    class Config(config.Config):
        """What X-Llama passes down to every token mixer."""

        dim: PositiveInt
        """Features d of a token."""
        layer: NonNegativeInt = 0
        """Index of the layer, counted from 0."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that tests build it with, on top of what X-Llama passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Float[Tensor, "b n d"], scope: Scope, cache: LayerCache | None) -> Float[Tensor, "b n d"]:
        """Return the mixed features; `scope` has the tokens' positions, and `cache` what `state` declares."""

    def state(self) -> Mapping[str, StateSpec]:
        """The state that it keeps while decoding, by name; by default none."""
        return {}


class Unmixed(TokenMixer):
    """The features as they are, as in Llama 2 (arXiv 2307.09288, Section 2.2)."""

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope, cache: LayerCache | None) -> Float[Tensor, "b n d"]:
        """Return `x`."""
        return x


TOKEN_MIXERS: Registry[TokenMixer] = Registry("token_mixer", TokenMixer)
"""Token mixers by key; a plugin adds one in the entry-point group `axon.v1.token_mixer`."""
