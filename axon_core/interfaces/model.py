"""The interface of models, and of the causal language models that generation and alignment rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import config
from axon_core.config import validate
from axon_core.interfaces.cache import Cache
from axon_core.interfaces.overlay import Overlay


class Vocabulary(Protocol):
    """What a model needs of a tokenizer to be saved beside it."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    def save(self, folder: Path | str, /) -> None:
        """Write the tokenizer into `folder`."""
        ...


class Model(nn.Module, ABC):
    """A model: a module that is rebuilt from its config, and saved to and loaded from a folder."""

    class Config(config.Config):
        """Everything that is needed to build the model; it round-trips through JSON."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options the conformance kit builds it with; one variant each. Left out,
    `dim`, `n_heads`, `n_layers`, `context` and `vocab_size` are small numbers."""

    loaded_from: Path | None = None
    """The folder that its weights were read from to be trained further; None for a new model."""
    loaded_as: str | None = None
    """The checksum of the model in that folder when it was read; another may be there by the time this is saved."""
    overlay: Overlay | None = None
    """What is trained instead of its weights, if that is so (`RecipeSection`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, **values: Any) -> Self:
        """Build the model from the values of its config. Raises `ConfigError` if one breaks a rule."""
        return cls(validate(cls.Config, values))

    def hidden_matrices(self) -> list[Tensor]:
        """The weight matrices that map features to features: what a matrix optimiser such as Muon is for.

        By default the weights of all linear layers; a model leaves out its output head.
        """
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]

    @property
    def n_parameters(self) -> int:
        """How many numbers its parameters hold, shared ones counted once, frozen ones too."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, folder: Path | str, tokenizer: Vocabulary | None = None) -> None:
        """Write `config.json` (with the versions of all parts) and `model.safetensors` into `folder`.

        With its `tokenizer`, the folder is all that `axon generate` needs. Leftovers of a killed process are removed.

        Raises:
            CheckpointError: the folder cannot be written to, or the tokenizer has more tokens than the model.
            UsageError: another process saves into the folder; the message names that process.
        """
        from axon_core.checkpoint.models import save_model

        save_model(self, Path(folder), tokenizer)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a model that `save` wrote.

        Raises:
            CheckpointError: a file is missing or damaged, a part is not installed, or it is a model of another class.
        """
        from axon_core.checkpoint.models import load_model

        return load_model(Path(folder), cls)


class CausalLM(Model):
    """A causal language model `(b n) -> (b n v)`: position i scores the token that follows the first i + 1.

    `forward` is `logits` after `features`; they are separate because generation needs only the logits of the last
    position.
    """

    class Config(Model.Config):
        """What every causal language model has."""

        vocab_size: PositiveInt
        """Number of tokens v."""
        context: PositiveInt
        """Sequence length the model is trained with."""

    config: Config

    @property
    def context(self) -> int:
        """The longest sequence the model is meant for."""
        return self.config.context

    @abstractmethod
    def features(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        valid: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the features of each token, ready for `logits`.

        `valid` is False for padding, whatever id stands there; `documents` number the documents of packed rows; with
        a `cache` the tokens follow those already in it, and padding comes only before a row's first token.

        Raises:
            UsageError: with a cache, documents are given, or padding after a row's first token.
        """

    @abstractmethod
    def logits(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """Return the scores of the next token."""

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        valid: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Return the scores of each position's next token; arguments as for `features`."""
        return self.logits(self.features(tokens, valid=valid, documents=documents, cache=cache))

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> Cache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens, in the model's dtype and device."""
