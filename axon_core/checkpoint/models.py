"""Models on disk: safetensors and JSON, checked when they are read, never pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from axon_core.checkpoint.atomic import atomic_file, write_text, writing
from axon_core.checkpoint.exports import Gathered, Later
from axon_core.checkpoint.manifest import add_to_manifest, claimed_files, sha256
from axon_core.checkpoint.model_folder import (
    CONFIG,
    WEIGHTS,
    SavedBase,
    base_weights,
    build_section,
    damaged,
    fingerprint,
    own_tensors,
    recipe_sections,
    saved_model,
    where_base,
)
from axon_core.checkpoint.overlays import WeightChange, overlaid, overlays, own_state
from axon_core.checkpoint.tensor_files import Readable, file_order, read_header, write_tensors
from axon_core.checkpoint.weights import give, load_weights, misfit, sizes, tensors_once, weightless
from axon_core.errors import CheckpointError, ConfigError, UsageError, first_line
from axon_core.escaping import shortened
from axon_core.json_text import to_json
from axon_core.processes import is_first, is_spread, together
from axon_core.randomness import forked
from axon_core.registries import MODELS
from axon_core.registry import provenance
from axon_core.registry.lock_comparison import note_differences

if TYPE_CHECKING:
    from axon_core.interfaces.model import Model, Vocabulary

__all__ = [
    "check_vocabulary",
    "load_config",
    "load_into",
    "load_model",
    "save_config",
    "save_model",
]

M = TypeVar("M", bound="Model")


def save_model(model: Model, folder: Path, tokenizer: Vocabulary | None = None) -> None:
    """Write a model as `config.json`, which names its parts and their versions, and `model.safetensors`.

    Of a model that is an overlay of a saved one (`Model.overlay`), the file holds what is not in the other's folder,
    and `config.json` names that. If it has no saved base, its weights are written as the overlay changes them.

    The `tokenizer` is saved beside them. Leftovers of these files from a killed process are removed. Of a model that is
    spread over processes, all call it alike: they put one tensor together at a time, and the first writes. While a
    checkpoint is made in the background or by several processes, the weights are written after the call (`Later`).

    Raises:
        CheckpointError: the folder cannot be written to, or the tokenizer has more tokens than the model.
        UsageError: another process saves into it, and the message names that process; or it has the model's own base.
        PeerError: the model is spread over processes, and the first cannot write.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, getattr(model.config, "vocab_size", tokenizer.vocab_size))
    if (found := overlaid(model)) and found[2].base and found[2].base.resolve() == folder.resolve():
        raise UsageError(f"{folder} has the weights that this model adds to, which would be lost; save elsewhere")
    kept, tied = _to_save(model)
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


def _to_save(model: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the model's file, each under one name, and the other names' name."""
    if overlaid(model) is not None:
        return own_state(model), {}
    kept, tied = tensors_once(model)
    for prefix, part, overlay in overlays(model):
        own = {name: kept[f"{prefix}{name}"].detach() for name in overlay.names}
        change = build_section(overlay.section, overlay.options).weight_change(part, own)
        for name in overlay.names - _names_without_overlay(part):
            del kept[f"{prefix}{name}"]
        for name in [name for name in kept if name.startswith(prefix)]:
            kept[name] = change(name.removeprefix(prefix), kept[name].detach())
    return kept, tied


def _names_without_overlay(model: nn.Module) -> set[str]:
    """Return the names of the tensors that a model of this config has before a section changes it."""
    with weightless(), forked("cpu"):
        return {*cast("Model", type(model)(model.config)).state_dict()}


def _write(model: Model, folder: Path, tensors: Mapping[str, Tensor | Readable], *, tied: Mapping[str, str]) -> None:
    with claimed_files(folder, WEIGHTS, CONFIG), writing(folder):
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
    base = _base(model, folder)
    parts = provenance.parts_of([model], *([recipe_sections()[base.section]] if base else []))
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
    if base is not None:
        facts["base"] = base.model_dump()
    write_text(folder / CONFIG, to_json(facts, indent=1))
    add_to_manifest(folder, CONFIG, WEIGHTS, known={WEIGHTS: checksum})


def _base(model: Model, folder: Path) -> SavedBase | None:
    """Return what `config.json` in `folder` says of the saved model that `model` is an overlay of."""
    if (found := overlaid(model)) is None:
        return None
    prefix, part, overlay = found
    assert overlay.base is not None
    there = overlay.base.absolute()
    return SavedBase(
        folder=str(there),
        relative=os.path.relpath(there, folder.absolute()),
        fingerprint=cast("Model", part).loaded_as or fingerprint(there),
        prefix=prefix,
        section=overlay.section,
        options=dict(overlay.options),
    )


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

    Those of an overlay's base are changed as they are read, one at a time.

    Raises:
        CheckpointError: they are damaged, or the folder of an overlay's base is not there or has changed.
    """
    _load(model, folder, model if into is None else into, None)


def _load(model: Model, folder: Path, into: nn.Module, change: WeightChange | None) -> None:
    saved = saved_model(folder)
    if saved.base is not None:
        return _load_overlay(model, folder, into, change, saved.base)
    if _read(model, folder, into, change) != saved.sha256:
        raise damaged(folder)
    return None


def _load_overlay(model: Model, folder: Path, into: nn.Module, change: WeightChange | None, base: SavedBase) -> None:
    """Read the model that `folder` is an overlay of, as the section that made it changes its weights; then the rest."""
    within = base.prefix.rstrip(".")
    inner, target = (cast("Model", each.get_submodule(within)) if within else each for each in (model, into))
    tensors = dict(own_tensors(folder))
    own = {name.removeprefix(base.prefix): tensors.pop(name) for name in list(tensors) if name.startswith(base.prefix)}
    made = build_section(base.section, base.options).weight_change(cast("Model", inner), own)

    def both(name: str, weight: Tensor) -> Tensor:
        weight = made(name, weight)
        return weight if change is None else change(f"{base.prefix}{name}", weight)

    _load(cast("Model", inner), where_base(folder, base), target, both)
    for name, tensor in tensors.items():
        give(into, [name], model.state_dict(keep_vars=True)[name], change(name, tensor) if change else tensor)


def _read(model: Model, folder: Path, into: nn.Module, change: WeightChange | None) -> str:
    try:
        return load_weights(model, folder / WEIGHTS, into, change)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None


def load_config(folder: Path, cls: type[M]) -> M:
    """Check a model folder and return its model without the weights, as `weightless` builds it.

    Only the header of the weights is read, which gives names, shapes, and whether the file is whole; `load_into` and
    `check_weights` compare the checksum. A warning says what differs from the lock of the model's run, if it has one.

    Raises:
        CheckpointError: a file is missing or damaged, a part is not installed, or it is a model of another class.
    """
    saved = saved_model(folder)
    provenance.require([part.model_dump() for part in saved.parts], f"the model in {folder}")
    if is_first():
        note_differences(folder)
    found: type[Model] = cls if saved.type is None else MODELS[saved.type]
    if not issubclass(found, cls):
        raise CheckpointError(
            f"{folder} contains a model of the class {found.__name__}, but {cls.__name__} is needed here; "
            "give the folder "
            "of such a model"
        )
    weights = base_weights(folder)
    try:
        held = [*sizes(folder / WEIGHTS), *(sizes(weights) if saved.base else [])]
        with weightless(held), forked("cpu"):  # the first weights are drawn, then replaced
            model = cast(M, found.build(**saved.config))
        problem = _misfit(model, folder, saved.base)
    except ConfigError as error:
        raise error.inside("config", source=str(folder / CONFIG)) from None
    except FileNotFoundError:
        raise CheckpointError(f"no model in {folder}: {WEIGHTS} is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None
    except (CheckpointError, RuntimeError, OverflowError) as error:  # torch's own words if a size has no number
        raise CheckpointError(f"the weights in {folder} do not fit its config: {first_line(error)}") from None
    if problem:
        raise CheckpointError(f"the weights in {folder} do not fit its config: {problem}")
    return model


def _misfit(model: Model, folder: Path, base: SavedBase | None) -> str | None:
    """Return in words how the tensors in `folder`, and in that of its base, are not the model's, or None."""
    if base is None:
        return misfit(model, folder / WEIGHTS)
    within, there = base.prefix.rstrip("."), where_base(folder, base)
    try:
        inner = cast("Model", model.get_submodule(within))
    except AttributeError:
        return f"it has no part {shortened(within, 100)}"
    if problem := _misfit(inner, there, saved_model(there).base):
        return problem
    held = read_header(folder / WEIGHTS)[1]
    mine = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not name.startswith(base.prefix)
    }
    for name, tensor in mine.items() if within else ():
        if name not in held:
            return f"{name} is missing"
        if (shape := tuple(held[name]["shape"])) != tensor.shape:
            return f"{name} must have the shape {tuple(tensor.shape)}, got {shape}"
    if strange := sorted(name for name in held.keys() - mine.keys() if not name.startswith(base.prefix)):
        return f"{strange[0]} is not among its tensors"
    return None
