"""The interface of attentions, and the state they keep while decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from axon_core import config
from axon_core.interfaces.cache import LayerCache, StateSpec
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.interfaces.scope import Scope
from axon_core.interfaces.tensor_split import TensorSplit


class Attention(nn.Module, ABC):
    """Attention `(b n d) -> (b n d)`, over the sequence itself or over a `memory` (cross-attention).

    The `scope` says which positions the tokens have and what each may see; an attention may narrow that, never widen
    it. With a `cache`, the tokens of `x` follow those already in it, and the result is the same as for one pass over
    all of them. With a `memory` as well, the cache holds nothing of `x`, only what is computed from the memory alone
    (`LayerCache.once`), so that only the first pass reads the memory.
    """

    class Config(config.Config):
        """What a model passes down to every attention."""

        dim: PositiveInt
        """Features d of a token."""
        n_heads: PositiveInt = Field(le=65_536)
        """Query heads h."""
        head_dim: PositiveInt = Field(default_factory=lambda given: given["dim"] // given["n_heads"])
        """Features of a head; by default dim / n_heads."""
        layer: NonNegativeInt = 0
        """Index of the layer, counted from 0; some attentions depend on it."""
        n_layers: PositiveInt | None = None
        """Number of the model's layers, if it says so."""
        context: PositiveInt | None = None
        """Sequence length the model is trained with, if it says so."""

        @property
        def rotary_dim(self) -> int:
            """How many features of a head the rotary embedding rotates; 0 if the attention takes none."""
            return self.head_dim

        @model_validator(mode="after")  # not in the default's factory, whose errors pydantic does not report
        def _divisible(self) -> Self:
            if "head_dim" not in self.model_fields_set and self.dim % self.n_heads:
                raise ValueError(
                    f"dim must be a multiple of n_heads, but {self.dim} % {self.n_heads} = {self.dim % self.n_heads}; "
                    "change one of them, or give head_dim"
                )
            return self

    cross: ClassVar[bool] = True
    """Whether it can attend to a `memory`; a model that needs this refuses attentions that cannot."""
    bidirectional: ClassVar[bool] = True
    """Whether its tokens can see later ones. False says that it is defined for causal scopes alone; a model that needs
    others, such as an encoder, refuses it."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options the conformance kit builds it with, on top of what a model passes down; one variant each."""

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__()
        self.config = config
        self.rotary = rotary

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token of `x` gathers from what it may see."""

    def state(self) -> Mapping[str, StateSpec]:
        """The state this attention keeps while decoding, by name; the core allocates it."""
        return {}

    def tensor_split(self) -> TensorSplit | None:
        """How its heads are divided among processes that compute each example together; by default they are not."""
        return None
