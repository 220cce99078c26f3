"""The sampling settings that a checkpoint was published with, which commands use where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axon_core.checkpoint.model_folder import base_of
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError
from axon_core.generation.sampling import Sampling

__all__ = ["PUBLISHED", "published_sampling", "published_settings"]

PUBLISHED = "generation_config.json"
"""The file of a model's folder that holds them, under Hugging Face's names."""


def published_sampling(folder: Path) -> Mapping[str, Any]:
    """Return the fields of `Sampling` that the folder's `generation_config.json` sets; none if it has no such file.

    `do_sample` false is a temperature of 0, and `do_sample` true without a temperature is 1, as in transformers. A
    value that breaks a rule of `Sampling` is left out.
    """
    found, _ = published_settings(folder)
    do_sample = found.pop("do_sample", None)
    if do_sample is False:
        found["temperature"] = 0.0
    elif do_sample:
        found.setdefault("temperature", 1.0)
    if found.get("top_k") == 0:  # which means none there
        del found["top_k"]
    return found


def published_settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what the folder's `generation_config.json` says about sampling, in Hugging Face's terms.

    Beside it, there is a sentence for each value that breaks a rule, and is therefore left out. A model that is an
    overlay of a saved one has what came with that one, unless its own folder has the file.
    """
    try:
        values = parse_json(_file(folder).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}, []
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name in ("do_sample", *Sampling.model_fields) if isinstance(values, dict) else ():
        if (value := values.get(name)) is None:
            continue
        if rule := _broken(name, value):
            wrong.append(f"{name} of {PUBLISHED} is left out: it {rule}")
        else:
            found[name] = value
    return found, wrong


def _file(folder: Path) -> Path:
    """Return the file of a model's folder, or of the first below it that has one."""
    while not (folder / PUBLISHED).exists():
        try:
            below = base_of(folder)
        except CheckpointError:  # a folder of another project, or one that is reported where it is read
            break
        if below is None:
            break
        folder = below
    return folder / PUBLISHED


def _broken(name: str, value: object) -> str:
    """Return the rule that a setting breaks, with its value; empty if it breaks none."""
    if name == "do_sample":
        return "" if isinstance(value, bool) else f"must be true or false, got {value!r:.60}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r:.60}"
    if name == "top_k" and value == 0:
        return ""
    try:
        validate(Sampling, {name: value})
    except ConfigError as error:
        return error.problems[0][1]
    return ""
