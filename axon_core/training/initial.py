"""What the model of a recipe starts from: a saved one, or a new one with weights drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from axon_core.config import validate
from axon_core.interfaces.model import Model
from axon_core.randomness import Key
from axon_core.registries import MODELS
from axon_core.registry.spec import Spec
from axon_core.text.tokenizer import ByteTokenizer, Tokenizer, train_tokenizer
from axon_core.training.pretrained import Saved, load_pretrained

__all__ = ["InitialModel", "new_model"]

M = TypeVar("M", bound=Model)


def new_model(table: Mapping[str, Any], seed: int, *role: str, **known: Any) -> Model:
    """Return the new model that a recipe's table describes by `type` and options; its weights depend on `seed` alone.

    Args:
        table: the `type` and its options.
        seed: the run's.
        role: sets the weights apart from those of other models with the same seed.
        known: options that follow from the data, such as `vocab_size`.

    Raises:
        ConfigError: an option breaks a rule.
        UnknownKey: no model has this `type`.
    """
    with Key((seed, "weights", *role)).seeded("cpu"):
        return MODELS.build(Spec.of(table), **known)


class InitialModel:
    """The language model that a recipe's table describes: `init` names a saved one, `type` a new one.

    Args:
        table: a `Saved`, or a `type` and its options.
        saved: what the same recipe exported before; it takes precedence over the folder that `init` names.

    Attributes:
        folder: where the model's tokenizer is saved, or None if it is to be trained.

    Raises:
        ConfigError: the table has `init`, and breaks a rule of `Saved`.
        CheckpointError: there is no model in the folder that `init` names.
    """

    def __init__(self, table: Mapping[str, Any], saved: Path | None = None) -> None:
        self._table = table
        self._initial = validate(Saved, table) if "init" in table else None
        self.folder = saved or (self._initial.folder if self._initial else None)

    @staticmethod
    def check(table: Mapping[str, Any]) -> None:
        """Raise `ConfigError` or `UnknownKey` if the table breaks a rule, as far as that is known without files."""
        if "init" in table:
            validate(Saved, table)
        else:
            MODELS.config(Spec.of(table), vocab_size=ByteTokenizer().vocab_size)  # which one is known with the data

    def saved_tokenizer(self) -> Tokenizer | None:
        """Return the saved model's tokenizer, or None. Raises `CheckpointError` if it is damaged or missing."""
        return None if self.folder is None else Tokenizer.load(self.folder)

    def tokenizer(self, spec: Spec, text: str) -> Tokenizer:
        """Return the saved model's tokenizer, or a new one as `spec` says, trained on `text`.

        Raises:
            CheckpointError: the saved one is damaged or missing.
            ConfigError: `spec` breaks a rule.
            DataError: the text is not enough for it.
        """
        return train_tokenizer(spec, text) if (found := self.saved_tokenizer()) is None else found

    def build(self, kind: type[M], seed: int, tokenizer: Tokenizer) -> M | Model:
        """Return the saved model in float32, or a new one for the tokenizer, whose weights depend on `seed` alone.

        Only a saved model must be of this `kind`. What the recipe exported before does not replace a new model: its
        weights are in the checkpoint, and its options in the recipe.

        Raises:
            ConfigError: an option of a new model breaks a rule.
            CheckpointError: there is no intact model of this kind in the folder.
        """
        if self._initial is not None and self.folder is not None:
            return load_pretrained(self.folder, kind)[0]
        return new_model(self._table, seed, vocab_size=tokenizer.vocab_size)
