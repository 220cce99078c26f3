"""Saved models: where they are, and how a training starts from them."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import model_validator

from axon_core import config
from axon_core.checkpoint.locks import pinned
from axon_core.checkpoint.models import check_vocabulary, load_config
from axon_core.errors import CheckpointError
from axon_core.interfaces.model import Model
from axon_core.json_text import to_json
from axon_core.paths import expanded
from axon_core.text.tokenizer import Tokenizer
from axon_core.training.run_folder import RunFolder
from axon_core.training.sections import read_weights

__all__ = [
    "Saved",
    "load_pretrained",
    "model_folder",
    "named_model_folder",
    "open_pretrained",
    "pinned_model_folder",
    "tokenizer_difference",
]

M = TypeVar("M", bound=Model)


class Saved(config.Config):
    """A table of a recipe that names a saved model, whose type and sizes are in its folder."""

    init: str
    """A run's folder or a model's, whose tokenizer is used too; `~` and `$VARIABLES` are filled in."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and "init" in table and "type" in table:
            fields = cast("Mapping[str, Any]", table)
            strange = ", ".join(name for name in fields if name not in cls.model_fields)
            whole = f"{{init={to_json(str(fields['init']), ensure_ascii=False)}}}"
            raise ValueError(
                f"init names a saved model, whose folder has its type and sizes; remove {strange} from this table, "
                f"or replace the whole table with --set 'TABLE={whole}', where TABLE is its name"
            )
        return cast(Any, table)

    @property
    def folder(self) -> Path:
        """The model's folder. Raises `CheckpointError` if there is no model in `init`."""
        return named_model_folder(self.init)


def named_model_folder(name: str) -> Path:
    """Return the folder of the model that a recipe names. Raises `CheckpointError` if there is none."""
    return model_folder(expanded(name, CheckpointError))


def model_folder(path: Path) -> Path:
    """Return the folder of the model in `path`: what a run exported at its end, its latest checkpoint's, or `path`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (path / "config.json").exists():
        return path
    run = RunFolder.open(path)
    if run.model.exists():
        return run.model
    checkpoint = run.checkpoints.find(None)
    if checkpoint is None:
        raise CheckpointError(
            f"{path} has no model yet; continue with: axon train --resume --out {shlex.quote(str(path))}"
        )
    return checkpoint / "model"


@contextmanager
def pinned_model_folder(path: Path) -> Generator[Path]:
    """Yield `model_folder(path)`; a running training does not remove a checkpoint that is read within the block.

    Raises:
        CheckpointError: there is no model, or it is damaged.
    """
    while True:
        folder = model_folder(path)
        with pinned(folder.parent if folder.parent.name.startswith("step-") else folder) as there:
            if there:
                yield folder
                return


def open_pretrained(folder: Path, kind: type[M]) -> tuple[M, Tokenizer]:
    """Return a saved model of this kind without its weights, which `load_into` reads, and its tokenizer.

    Raises:
        CheckpointError: either is damaged or missing, or they do not fit each other.
    """
    model, tokenizer = load_config(folder, kind), Tokenizer.load(folder)
    try:
        check_vocabulary(tokenizer, getattr(model.config, "vocab_size", tokenizer.vocab_size))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return model, tokenizer


def load_pretrained(folder: Path, kind: type[M]) -> tuple[M, Tokenizer]:
    """Return a saved model of this kind to be trained further, and its tokenizer.

    The weights are in float32, as half precision is too coarse to sum up updates in, unless a section of the recipe
    that is built keeps them otherwise (`RecipeSection.load`).

    Raises:
        CheckpointError: either is damaged or missing, or they do not fit each other.
    """
    model, tokenizer = open_pretrained(folder, kind)
    return read_weights(model, folder), tokenizer


def tokenizer_difference(ours: Tokenizer, theirs: Tokenizer) -> str | None:
    """Return in words how two tokenizers differ, or None."""
    if ours.vocab_size != theirs.vocab_size:
        return f"they have {ours.vocab_size} and {theirs.vocab_size} tokens"
    for token in range(ours.vocab_size):
        if ours.piece(token) != theirs.piece(token):
            return f"token {token} is {ours.piece(token)!r} in one and {theirs.piece(token)!r} in the other"
    if (ours.bos, ours.eos) != (theirs.bos, theirs.eos):
        return f"their bos and eos are {(ours.bos, ours.eos)} and {(theirs.bos, theirs.eos)}"
    return None
