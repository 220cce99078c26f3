"""JSON for files and programs, in which every number is finite, as the format demands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["to_json"]

_WORDS = "not_finite"


def to_json(value: Any, **layout: Any) -> str:
    """Return `value` as JSON text, as `json.dumps` lays it out; a number that is not finite becomes null.

    The object around it says in words which number it was, by its name and, in a list, its place.

    >>> to_json({"step": 3, "loss": math.nan, "values": [1.0, -math.inf]})
    '{"step": 3, "loss": null, "values": [1.0, null], "not_finite": {"loss": "nan", "values.1": "-inf"}}'

    Raises:
        TypeError: it holds something other than JSON's types.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:  # rare, so the search below costs nothing
        return json.dumps(_finite(value, "", {}), allow_nan=False, **layout)


def _finite(node: Any, place: str, words: dict[str, str]) -> Any:
    """Return `node` with null for numbers that are not finite; what they were goes into `words`, by place."""
    if isinstance(node, float) and not math.isfinite(node):
        words[place] = str(node)
        return None
    if isinstance(node, Mapping):
        own: dict[str, str] = {}
        found = {key: _finite(child, str(key), own) for key, child in cast(Mapping[Any, Any], node).items()}
        return {**found, _WORDS: own} if own else found
    if isinstance(node, list | tuple):
        children = enumerate(cast(list[Any], node))
        return [_finite(child, f"{place}.{i}" if place else str(i), words) for i, child in children]
    return node
