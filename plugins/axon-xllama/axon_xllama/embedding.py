"""Embeddings of X-Llama: the interface, the registry, and the one that every X-Llama can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import embedding

from axon_core import config
from axon_core.interfaces import LayerCache, Scope, StateSpec
from axon_core.registry import Registry

__all__ = ["EMBEDDINGS", "TokenEmbedding"]


class TokenEmbedding(nn.Embedding):
    """The features of each token before the first layer, `(b n) -> (b n d)`: row t of a table for token t.

    Source: arXiv 2307.09288, Section 2.2, whose embedding is that of Llama 1.

    An embedding of another paper derives from it, so that the head can share its table. One that depends on earlier
    tokens declares what it keeps of them in `state`, as an attention does; the model's cache then has it.
    """

    class Config(config.Config):
        """What X-Llama passes down to every embedding."""

        vocab_size: PositiveInt
        """Number of tokens v."""
        dim: PositiveInt
        """Features d of a token."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that tests build it with, on top of what X-Llama passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.vocab_size, config.dim)
        self.config = config

    def forward(
        self, input: Int[Tensor, "b n"], scope: Scope | None = None, cache: LayerCache | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens' features; `scope` has their positions, and `cache` what `state` declares."""
        return embedding(input, self.weight)

    def state(self) -> Mapping[str, StateSpec]:
        """The state that it keeps while decoding, by name; by default none."""
        return {}


EMBEDDINGS: Registry[TokenEmbedding] = Registry("embedding", TokenEmbedding)
"""Embeddings by key; a plugin adds one in the entry-point group `axon.v1.embedding`."""
