"""Edits of trees and of bytes: pure functions, and the strategies that draw them."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

from hypothesis import strategies as st

NUMBERS = [
    *(0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**12, 10**26),
    *(0.5, -0.0, 1e-320, 1e12, 1e308, -1e308, math.nan, math.inf, -math.inf),
]
WORDS = [
    *("", " ", "\n", "\x00", "\x1b[31mred\x1b[0m", "\u202etxt", "\ufeff", "e\u0301", "\U0001f600", "ß", "nan", "-1"),
    *("a" * 5000, "../..", "/", "~", "$HOME", "$NONE", "digits", "char", "mha", "muon", "<b>", "%s", "{0}", "a;b", "@"),
]
VALUES = [None, True, False, [], {}, [[]], {"type": "none"}, *NUMBERS, *WORDS]
DEPTH = 150

Path = tuple[str | int, ...]


class Edit(NamedTuple):
    """One change of a tree: what is done, at the node of that number, with a second number for what it needs."""

    kind: str
    node: int
    other: int


def nodes(tree: Any) -> list[Path]:
    """Return the paths of all nodes below the root, outer before inner."""
    found: list[Path] = []

    def visit(node: Any, path: Path) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            found.append((*path, key))
            visit(child, found[-1])

    visit(tree, ())
    return found


def edited(tree: Any, edit: Edit) -> Any:
    """Return a copy of `tree` with the edit."""
    tree = copy.deepcopy(tree)
    if not (paths := nodes(tree)):
        return tree
    *outer, key = paths[edit.node % len(paths)]
    holder = _at(tree, outer)
    value = holder[key]
    match edit.kind:
        case "drop":
            del holder[key]
        case "duplicate" if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(value))
        case "duplicate":
            holder[WORDS[edit.other % len(WORDS)]] = copy.deepcopy(value)
        case "misspell" if isinstance(holder, dict):
            holder[f"{key}{WORDS[edit.other % len(WORDS)]}"] = holder.pop(key)
        case "replace":
            holder[key] = copy.deepcopy(VALUES[edit.other % len(VALUES)])
        case "number":
            holder[key] = NUMBERS[edit.other % len(NUMBERS)]
        case "retype":
            holder[key] = _retyped(value, edit.other)
        case "huge":
            holder[key] = _huge(value)
        case "deep":
            for _ in range(DEPTH):
                value = {"a": value} if edit.other % 2 else [value]
            holder[key] = value
        case "swap":
            *place, name = paths[edit.other % len(paths)]
            other = _at(tree, place)
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(value)
    return tree


def _at(tree: Any, path: Any) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _retyped(value: Any, other: int) -> Any:
    forms = [str(value), [value], {"type": value}, bool(value), len(str(value)), float(len(str(value)))]
    return forms[other % len(forms)]


def _huge(value: Any) -> Any:
    if isinstance(value, str):
        return (value or "a") * 3000 if len(value) < 100 else value
    if isinstance(value, list):
        return value * 300 if len(nodes(value)) < 100 else value  # else two edits make a file of gigabytes
    if isinstance(value, dict):
        return {**value, **{f"x{i}": i for i in range(300)}}
    return -(10**30) if value is not None and value < 0 else 10**30


KINDS = ["drop", "duplicate", "misspell", "replace", "number", "retype", "huge", "deep", "swap"]
_INDEX = st.integers(0, 255)
tree_edits = st.lists(st.builds(Edit, st.sampled_from(KINDS), _INDEX, _INDEX), min_size=1, max_size=3)
"""Draws one to three edits of a tree."""


class Splice(NamedTuple):
    """One change of bytes, from a place on that is given in 1/65536 of their length."""

    kind: str
    place: int
    other: int


INSERTED = [
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b"\n\n",
        b'"',
        b"'",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"=",
    ),
    *(b"1e999", b"NaN", b"-", b"\xed\xa0\x80", b"\\ud800", b"# ", b":", b".", b"\xe2\x80\xae", b"\x80" * 100),
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"a" * 100_000),
]


def spliced(data: bytes, splice: Splice) -> bytes:
    """Return the bytes with the change."""
    place, other = len(data) * splice.place >> 16, splice.other
    match splice.kind:
        case "flip" if data:
            return data[:place] + bytes([data[place] ^ 1 << other % 8]) + data[place + 1 :]
        case "byte" if data:
            return data[:place] + bytes([other]) + data[place + 1 :]
        case "cut":
            return data[:place]
        case "remove":
            return data[:place] + data[place + 1 + other :]
        case "insert":
            return data[:place] + INSERTED[other % len(INSERTED)] + data[place:]
        case "repeat":
            return data[:place] + data[place : place + 1 + other] * 3 + data[place + 1 + other :]
    return data


splices = st.lists(
    st.builds(
        Splice,
        st.sampled_from(["flip", "byte", "cut", "remove", "insert", "repeat"]),
        st.integers(0, 65535),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)
"""Draws one to three changes of bytes."""
