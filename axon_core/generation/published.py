"""The sampling settings that a checkpoint was published with, which commands use where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import ConfigError
from axon_core.generation.sampling import Sampling

__all__ = ["PUBLISHED", "published_sampling"]

PUBLISHED = "generation_config.json"
"""The file of a model's folder that holds them, under Hugging Face's names."""


def published_sampling(folder: Path) -> Mapping[str, Any]:
    """Return the fields of `Sampling` that the folder's `generation_config.json` sets; none if it has no such file.

    `do_sample` false is a temperature of 0. A value that breaks a rule of `Sampling` is left out.
    """
    try:
        values = parse_json((folder / PUBLISHED).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    found = {name: values[name] for name in Sampling.model_fields if values.get(name) is not None}
    if values.get("do_sample") is False:
        found["temperature"] = 0.0
    if found.get("top_k") == 0:  # which means none there
        del found["top_k"]
    return {name: value for name, value in found.items() if _valid(name, value)}


def _valid(name: str, value: object) -> bool:
    try:
        validate(Sampling, {name: value})
    except ConfigError:
        return False
    return True
