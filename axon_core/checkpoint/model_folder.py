"""What a model's folder says of itself: its `config.json`, and the saved model that it may be an overlay of."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from axon_core.checkpoint.manifest import read_checked, sha256
from axon_core.config import at, validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError
from axon_core.escaping import shortened
from axon_core.registry import provenance
from axon_core.registry.discovery import DIST_NAME
from axon_core.registry.registry import Registry, registry_of

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "SavedBase",
    "SavedModel",
    "base_of",
    "base_weights",
    "build_section",
    "check_weights",
    "damaged",
    "fingerprint",
    "own_tensors",
    "recipe_sections",
    "saved_model",
    "section_of",
    "where_base",
    "whole_weights",
]

CONFIG = "config.json"
"""The file of a model folder that says what the model is."""
WEIGHTS = "model.safetensors"
"""The file of a model folder that holds the weights."""


class _Part(BaseModel):
    """A part by its names, which are safe in a command line that a user is to paste."""

    group: str
    key: str
    distribution: str = Field(pattern=rf"^(\(this session\)|{DIST_NAME})$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]*$")


class SavedBase(BaseModel):
    """Which saved model another one is an overlay of, and what is made of its weights."""

    folder: str
    relative: str
    fingerprint: str
    prefix: str = ""
    section: str
    options: dict[str, Any]


class SavedModel(BaseModel):
    """What `config.json` holds."""

    type: str | None
    config: dict[str, Any]
    parts: list[_Part]
    sha256: str
    base: SavedBase | None = None


def check_weights(folder: Path) -> None:
    """Read all weights in `folder`, and raise `CheckpointError` if they are not those that were saved."""
    if sha256(folder / WEIGHTS) != saved_model(folder).sha256:
        raise damaged(folder)


def fingerprint(folder: Path) -> str:
    """Return a checksum of the model in `folder`: of its config, which holds that of the weights."""
    return sha256(folder / CONFIG)


def saved_model(folder: Path) -> SavedModel:
    """Return what `config.json` in a folder says. Raises `CheckpointError` if it is missing or damaged."""
    if not folder.is_dir():
        raise CheckpointError(f"no model folder {folder}")
    try:
        facts = parse_json(read_checked(folder / CONFIG).decode("utf-8-sig"))
        if isinstance(facts, dict) and "sha256" not in facts:
            raise CheckpointError(
                f"{folder} does not contain a model saved by Axon; import models of other projects first"
            )
        return validate(SavedModel, facts)
    except FileNotFoundError:
        raise CheckpointError(f"no model in {folder}: {CONFIG} is missing") from None
    except (ConfigError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged: {error}") from None


def damaged(folder: Path) -> CheckpointError:
    """Return the error that the weights in a folder are not those that were saved."""
    return CheckpointError(f"{folder / WEIGHTS} is damaged: it does not match the checksum in {CONFIG}")


def where_base(folder: Path, base: SavedBase) -> Path:
    """Return the folder of the saved model that the one in `folder` is an overlay of.

    Raises:
        CheckpointError: it is not where it was, nor beside `folder` as it was; or it has changed.
    """
    # A training publishes its last checkpoint's model one level higher than where it was written.
    below = re.sub(r"^(\.\./)+", "", PurePath(base.relative).as_posix())
    places = [Path(base.folder), *(parent / below for parent in folder.absolute().parents)]
    # `Path.exists` raises an error for a name that is too long.
    there = [place for place in places if os.path.exists(place / CONFIG)]
    if not there:
        raise CheckpointError(
            f"{folder} adds to the model in {shortened(base.folder, 300)}, which is not there; move it back, or keep "
            "both folders where they are to each other"
        )
    if not (same := [place for place in there if fingerprint(place) == base.fingerprint]):
        raise CheckpointError(
            f"{folder} adds to the model that was in {there[0]} when it was trained, which is another one now; "
            "restore that model"
        )
    return same[0]


def base_of(folder: Path) -> Path | None:
    """Return the folder of the saved model that the one in `folder` is an overlay of, or None if it is whole.

    Raises:
        CheckpointError: a file is missing or damaged, or the base is not there or has changed.
    """
    base = saved_model(folder).base
    return None if base is None else where_base(folder, base)


def section_of(folder: Path) -> Any:
    """Return the `axon_core.training.RecipeSection` that the model in `folder` was trained with; None if it is whole.

    Raises:
        CheckpointError: a file is missing or damaged, or the section's plugin is not installed.
    """
    saved = saved_model(folder)
    provenance.require([part.model_dump() for part in saved.parts], f"the model in {folder}")
    return None if saved.base is None else build_section(saved.base.section, saved.base.options)


def whole_weights(folder: Path) -> Path:
    """Return the file of all weights in a model folder.

    Raises:
        CheckpointError: the model is an overlay of a saved one, so that no file has its weights.
    """
    if (base := base_of(folder)) is not None:
        raise CheckpointError(
            f"{folder} has only what was trained on top of {base}; write the whole model first: axon merge "
            f"{shlex.quote(str(folder))} --out FOLDER"
        )
    return folder / WEIGHTS


def base_weights(folder: Path) -> Path:
    """Return the file that most of the model's weights are in: its own, or that of the model that it is an overlay of.

    Raises:
        CheckpointError: a file is missing or damaged, or a base is not there or has changed.
    """
    while (base := base_of(folder)) is not None:
        folder = base
    return folder / WEIGHTS


def own_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a model folder: of an overlay, what was trained instead of its base's weights.

    Raises:
        CheckpointError: they are damaged.
    """
    try:
        data = (folder / WEIGHTS).read_bytes()
        tensors = load_safetensors(data)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None
    if hashlib.sha256(data).hexdigest() != saved_model(folder).sha256:
        raise damaged(folder)
    return tensors


def build_section(name: str, options: Mapping[str, Any]) -> Any:
    """Return a section of a recipe (`axon_core.training.RecipeSection`), by the name of its table."""
    with at(name):
        kind = recipe_sections()[name]
        return kind(validate(kind.Config, options))


def recipe_sections() -> Registry[Any]:
    """Return the registry of sections of recipes, whose interface is above this package."""
    return registry_of("recipe_section")
