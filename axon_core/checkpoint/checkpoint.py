"""Models and checkpoints on disk: safetensors and JSON, checked when they are read, never pickle."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import save_model as save_weights

from axon_core.checkpoint.atomic import TREE, atomic_file, remove, remove_leftovers, write_text, writing
from axon_core.checkpoint.locks import pinned, unpinned
from axon_core.checkpoint.manifest import add_to_manifest, claimed_files, new_folder, read_checked, sha256, verify
from axon_core.checkpoint.trees import read_tree, read_values, write_tree
from axon_core.checkpoint.weights import load_weights, misfit, sizes, weightless
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError, UsageError
from axon_core.json_text import to_json
from axon_core.randomness import forked
from axon_core.registries import MODELS
from axon_core.registry import provenance
from axon_core.registry.discovery import DIST_NAME

if TYPE_CHECKING:
    from axon_core.interfaces.model import Model, Vocabulary

__all__ = [
    "WEIGHTS",
    "Checkpoints",
    "check_vocabulary",
    "check_weights",
    "load_config",
    "load_into",
    "load_model",
    "save_config",
    "save_model",
]

_CONFIG = "config.json"
_INTERIM = "interim"  # an empty file that marks such a checkpoint
WEIGHTS = "model.safetensors"
"""The file of a model folder that holds the weights."""

M = TypeVar("M", bound="Model")


class _Part(BaseModel):
    """A part by its names, which are safe in a command line that a user is to paste."""

    group: str
    key: str
    distribution: str = Field(pattern=rf"^(\(this session\)|{DIST_NAME})$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]*$")


class _Saved(BaseModel):
    """What `config.json` holds."""

    type: str | None
    config: dict[str, Any]
    parts: list[_Part]
    sha256: str


def save_model(model: Model, folder: Path, tokenizer: Vocabulary | None = None) -> None:
    """Write a model as `config.json`, which names its parts and their versions, and `model.safetensors`.

    The `tokenizer` is saved beside them. Leftovers of these files from a killed process are removed.

    Raises:
        CheckpointError: the folder cannot be written to, or the tokenizer has more tokens than the model.
        UsageError: another process saves into it; the message names that process.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, getattr(model.config, "vocab_size", tokenizer.vocab_size))
        with writing(folder):
            tokenizer.save(folder)
    with claimed_files(folder, WEIGHTS, _CONFIG), writing(folder):
        with atomic_file(folder / WEIGHTS) as draft:
            save_weights(model, str(draft))
        save_config(model, folder)


def check_vocabulary(tokenizer: Vocabulary, vocab_size: int) -> None:
    """Raise `CheckpointError` if a model of that many tokens cannot be used with this tokenizer.

    The model may have more tokens than the tokenizer, as when its vocabulary was rounded up.
    """
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has only {vocab_size}; use "
            "the tokenizer that the model was trained with"
        )


def save_config(model: Model, folder: Path) -> None:
    """Write the `config.json` of `save_model` beside weights that are in `folder` already; `model` may have none."""
    parts = provenance.parts_of([model])
    # The first entry is as good as any: one class may be offered under several keys.
    own = [key for part in parts if part["group"] == "model" and MODELS[key := provenance.key(part)] is type(model)]
    facts = {
        "type": own[0] if own else None,
        "config": model.config.model_dump(mode="json"),
        "parts": parts,
        "axon_core": metadata.version("axon-core"),
        "sha256": sha256(folder / WEIGHTS),
    }
    write_text(folder / _CONFIG, to_json(facts, indent=1))
    add_to_manifest(folder, _CONFIG, WEIGHTS)


def load_model(folder: Path, cls: type[M]) -> M:
    """Read a model that `save_model` wrote, in the dtype it was saved in; `cls` is its class, or a base of it.

    Raises:
        CheckpointError: a file is missing or damaged, a part is not installed, or it is a model of another class.
    """
    model = load_config(folder, cls)
    load_into(model, folder)
    return model


def load_into(model: Model, folder: Path, into: Model | None = None) -> None:
    """Read the weights in `folder` into what `load_config` returned, or into what `quantize` made of it.

    Raises:
        CheckpointError: they are damaged.
    """
    expected = _saved(folder).sha256
    try:
        found = load_weights(model, folder / WEIGHTS, into)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None
    if found != expected:
        raise _damaged(folder)


def load_config(folder: Path, cls: type[M]) -> M:
    """Check a model folder and return its model without the weights, as `weightless` builds it.

    Only the header of the weights is read, which gives names, shapes, and whether the file is whole; `load_into` and
    `check_weights` compare the checksum.

    Raises:
        CheckpointError: a file is missing or damaged, a part is not installed, or it is a model of another class.
    """
    saved = _saved(folder)
    provenance.require([part.model_dump() for part in saved.parts], f"the model in {folder}")
    found: type[Model] = cls if saved.type is None else MODELS[saved.type]
    if not issubclass(found, cls):
        raise CheckpointError(
            f"{folder} contains a model of the class {found.__name__}, but {cls.__name__} is needed here; "
            "give the folder "
            "of such a model"
        )
    try:
        with weightless(sizes(folder / WEIGHTS)), forked("cpu"):  # the first weights are drawn, then replaced
            model = cast(M, found.build(**saved.config))
        problem = misfit(model, folder / WEIGHTS)
    except ConfigError as error:
        raise error.inside("config", source=str(folder / _CONFIG)) from None
    except FileNotFoundError:
        raise CheckpointError(f"no model in {folder}: {WEIGHTS} is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None
    except (CheckpointError, RuntimeError, OverflowError) as error:  # torch's own words if a size has no number
        raise CheckpointError(f"the weights in {folder} do not fit its config: {str(error).splitlines()[0]}") from None
    if problem:
        raise CheckpointError(f"the weights in {folder} do not fit its config: {problem}")
    return model


def check_weights(folder: Path) -> None:
    """Read all weights in `folder`, and raise `CheckpointError` if they are not those that were saved."""
    if sha256(folder / WEIGHTS) != _saved(folder).sha256:
        raise _damaged(folder)


def fingerprint(folder: Path) -> str:
    """Return a checksum of the model in `folder`: of its config, which holds that of the weights."""
    return sha256(folder / _CONFIG)


def _saved(folder: Path) -> _Saved:
    if not folder.is_dir():
        raise CheckpointError(f"no model folder {folder}")
    try:
        facts = parse_json(read_checked(folder / _CONFIG).decode("utf-8-sig"))
        if isinstance(facts, dict) and "sha256" not in facts:
            raise CheckpointError(
                f"{folder} does not contain a model saved by Axon; import models of other projects first"
            )
        return validate(_Saved, facts)
    except FileNotFoundError:
        raise CheckpointError(f"no model in {folder}: {_CONFIG} is missing") from None
    except (ConfigError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _CONFIG} is damaged: {error}") from None


def _damaged(folder: Path) -> CheckpointError:
    return CheckpointError(f"{folder / WEIGHTS} is damaged: it does not match the checksum in {_CONFIG}")


def first_mismatch(error: Exception) -> str:
    """Return the first problem that `load_state_dict` lists in its error, for a one-line message."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else str(error)


class Checkpoints:
    """The checkpoints of a run: folders `step-<n>`, each complete or absent.

    A checkpoint holds the training state, the exported `model/` and a manifest of checksums.

    Args:
        folder: where they are.
        keep: how many of the latest survive a `save`; an interim one, of a training that was interrupted, is beside
            them until the next is made, so that in the end a resumed training leaves what any other does.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def names(self) -> list[str]:
        """Names of the checkpoints, earliest first."""
        steps = (found.name.removeprefix("step-") for found in self.folder.glob("step-*") if found.is_dir())
        return [f"step-{step}" for step in sorted(int(step) for step in steps if step.isdecimal())]

    def save(
        self, step: int, state: Mapping[str, Any], export: Callable[[Path], None], *, interim: bool = False
    ) -> Path:
        """Write checkpoint `step-<step>`, then drop all but the latest ones.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are intact.
        """
        target = self.folder / f"step-{step}"
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)  # its parent must exist: a run that was moved is not made again
        with new_folder(target) as folder:
            write_tree(folder, state)
            (folder / "model").mkdir()
            export(folder / "model")
            if interim:
                (folder / _INTERIM).touch()
        self._prune()
        return target

    def _prune(self) -> None:
        """Drop all but the latest checkpoints; one that is being read stays until next time."""
        names = self.names()
        regular = [name for name in names if not (self.folder / name / _INTERIM).exists()]
        spared = {*regular[-self._keep :], *names[-1:]}
        for name in (name for name in names if name not in spared):
            with unpinned(self.folder / name) as unread:
                if unread:
                    remove(self.folder / name)

    def find(self, name: str | None = None) -> Path | None:
        """Return an intact checkpoint by name, `"previous"` for the last but one, or the latest; None if there is none.

        Raises:
            UsageError: there is no checkpoint of that name.
            CheckpointError: it is damaged; the message names the latest one that is not.
        """
        names = self.names()
        wanted = names[-2] if name == "previous" and len(names) > 1 else name
        if wanted is not None and wanted not in names:
            raise UsageError(f"no checkpoint {wanted} in {self.folder}; there are: {', '.join(names) or 'none'}")
        if not names:
            return None
        folder = self.folder / (wanted or names[-1])
        if problem := verify(folder):
            if not folder.exists():  # a running training has replaced it by a later one
                return self.find(name)
            good = self.intact()
            remedy = (
                f"resume with --from {good}"
                if good
                else "no other checkpoint is intact: start the run again in another folder"
            )
            raise CheckpointError(f"checkpoint {folder.name} in {self.folder} is damaged: {problem}; {remedy}")
        return folder

    def intact(self) -> str | None:
        """Return the name of the latest checkpoint whose files are those that were written, or None."""
        return next((name for name in reversed(self.names()) if not verify(self.folder / name)), None)

    def learning_rate(self, name: str) -> float:
        """Return the peak of the learning rate that a checkpoint was made with.

        Raises:
            CheckpointError: it is damaged.
        """
        rate = read_values(self.folder / name).get("lr")
        if not isinstance(rate, int | float):
            raise CheckpointError(f"{self.folder / name / TREE} is damaged: it has no learning rate")
        return rate

    def clean(self, step: int) -> None:
        """Remove what a killed process left: drafts, checkpoints after `step`, and those beyond the number to keep."""
        if not self.folder.is_dir():
            return
        remove_leftovers(self.folder)
        for name in self.names():
            if int(name.removeprefix("step-")) > step:  # a resumed run writes it again
                remove(self.folder / name)
        self._prune()

    @contextmanager
    def reading(self, name: str | None = None) -> Generator[Path | None]:
        """Yield what `find` returns; a running training does not remove it within the block.

        Raises:
            UsageError: there is no checkpoint of that name.
            CheckpointError: it is damaged; the message names the latest one that is not.
        """
        while found := self.find(name):
            with pinned(found) as there:
                if there:
                    yield found
                    return
        yield None

    @staticmethod
    def read(checkpoint: Path) -> dict[str, Any]:
        """Return the training state of a checkpoint that `find` found. Raises `CheckpointError` if it is damaged."""
        return read_tree(checkpoint)
