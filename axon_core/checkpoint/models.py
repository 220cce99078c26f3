"""Models on disk: safetensors and JSON, checked when they are read, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, Field
from safetensors import SafetensorError
from torch import Tensor

from axon_core.checkpoint.atomic import atomic_file, write_text, writing
from axon_core.checkpoint.exports import Gathered, Later
from axon_core.checkpoint.manifest import add_to_manifest, claimed_files, read_checked, sha256
from axon_core.checkpoint.tensor_files import Readable, file_order, write_tensors
from axon_core.checkpoint.weights import load_weights, misfit, sizes, tensors_once, weightless
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError, first_line
from axon_core.json_text import to_json
from axon_core.processes import is_first, is_spread, together
from axon_core.randomness import forked
from axon_core.registries import MODELS
from axon_core.registry import provenance
from axon_core.registry.discovery import DIST_NAME

if TYPE_CHECKING:
    from axon_core.interfaces.model import Model, Vocabulary

__all__ = [
    "WEIGHTS",
    "check_vocabulary",
    "check_weights",
    "fingerprint",
    "load_config",
    "load_into",
    "load_model",
    "save_config",
    "save_model",
]

_CONFIG = "config.json"
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

    The `tokenizer` is saved beside them. Leftovers of these files from a killed process are removed. Of a model that is
    spread over processes, all call it alike: they put one tensor together at a time, and the first writes. While a
    checkpoint is made in the background or by several processes, the weights are written after the call (`Later`).

    Raises:
        CheckpointError: the folder cannot be written to, or the tokenizer has more tokens than the model.
        UsageError: another process saves into it; the message names that process.
        PeerError: the model is spread over processes, and the first cannot write.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, getattr(model.config, "vocab_size", tokenizer.vocab_size))
    kept, tied = tensors_once(model)
    later = Later.current()
    spread = later is None and any(is_spread(tensor) for tensor in kept.values())
    if tokenizer is not None and not (spread and not is_first()):
        with writing(folder):
            tokenizer.save(folder)
    if later is not None:
        later.add(kept, partial(_write, model, folder, tied=tied))
    elif spread:
        together(partial(_write_gathered, model, folder, kept, tied))
    else:
        _write(model, folder, kept, tied=tied)


def _write(model: Model, folder: Path, tensors: Mapping[str, Tensor | Readable], *, tied: Mapping[str, str]) -> None:
    with claimed_files(folder, WEIGHTS, _CONFIG), writing(folder):
        with atomic_file(folder / WEIGHTS) as draft:
            checksum = write_tensors(draft, tensors, tied)
        save_config(model, folder, checksum)


def _write_gathered(model: Model, folder: Path, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Write a model that is spread over processes. One that fails still takes part, as the others wait for it."""
    gathered = {name: Gathered(tensor) for name, tensor in tensors.items()}
    try:
        if is_first():
            _write(model, folder, gathered, tied=tied)
    finally:
        for name in file_order(gathered):
            gathered[name].take_part()


def check_vocabulary(tokenizer: Vocabulary, vocab_size: int) -> None:
    """Raise `CheckpointError` if a model of that many tokens cannot be used with this tokenizer.

    The model may have more tokens than the tokenizer, as when its vocabulary was rounded up.
    """
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has only {vocab_size}; use "
            "the tokenizer that the model was trained with"
        )


def save_config(model: Model, folder: Path, checksum: str | None = None) -> None:
    """Write the `config.json` of `save_model` beside weights that are in `folder` already; `model` may have none.

    Their SHA-256 is computed unless it is given as `checksum`.
    """
    checksum = checksum or sha256(folder / WEIGHTS)
    parts = provenance.parts_of([model])
    kind = provenance.class_of(model)
    # The first entry is as good as any: one class may be offered under several keys.
    own = [key for part in parts if part["group"] == "model" and MODELS[key := provenance.key(part)] is kind]
    facts = {
        "type": own[0] if own else None,
        "config": model.config.model_dump(mode="json"),
        "parts": parts,
        "axon_core": metadata.version("axon-core"),
        "sha256": checksum,
    }
    write_text(folder / _CONFIG, to_json(facts, indent=1))
    add_to_manifest(folder, _CONFIG, WEIGHTS, known={WEIGHTS: checksum})


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
        raise CheckpointError(f"the weights in {folder} do not fit its config: {first_line(error)}") from None
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
