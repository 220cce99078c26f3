"""Files as trees and back, so that an edit of the tree gives a file of the same format."""

from __future__ import annotations

import io
import json
import math
import tomllib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Format(NamedTuple):
    """How a file becomes a tree, and a changed tree a file; `write` is also given the file as it was."""

    read: Callable[[bytes], Any]
    write: Callable[[Any, bytes], bytes]


def _json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it on one line; it has no word for null."""
    match value:
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return (
                "{" + ", ".join(f"{toml_value(str(key))} = {toml_value(child)}" for key, child in value.items()) + "}"
            )
        case list():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case None:
            return '""'
        case str():
            return json.dumps(value, ensure_ascii=False)
    return repr(value)


def toml(tree: Any) -> str:
    """Return the tables as TOML, each on a line of its own."""
    return "".join(f"{toml_value(str(key))} = {toml_value(value)}\n" for key, value in tree.items())


def _header(data: bytes) -> Any:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_header(tree: Any, data: bytes) -> bytes:
    text = _json(tree)
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def _arrays(data: bytes) -> Any:
    with np.load(io.BytesIO(data)) as arrays:
        return {name: {"descr": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()}


def _packed(tree: Any, data: bytes) -> bytes:
    packed = io.BytesIO()
    with np.load(io.BytesIO(data)) as arrays, zipfile.ZipFile(packed, "w") as archive:
        numbers = b"".join(array.tobytes() for array in arrays.values())
        for name, array in tree.items():
            facts = array if isinstance(array, dict) else {}
            shape = facts.get("shape", "")
            header = f"{{'descr': {facts.get('descr', '|u1')!r}, 'fortran_order': False, 'shape': "
            header += f"{tuple(shape) if isinstance(shape, list) else shape!r}, }}\n"
            text = header.encode("utf-8", "replace")
            start = b"\x93NUMPY\x01\x00" + (len(text) & 0xFFFF).to_bytes(2, "little")
            archive.writestr(f"{name}.npy".replace("\0", "") or "x", start + text + numbers)
    return packed.getvalue()


def _sections(data: bytes) -> Any:
    tree: dict[str, dict[str, str]] = {}
    for line in data.decode().splitlines():
        if line.startswith("["):
            tree[line.strip("[]")] = {}
        elif line:
            key, _, value = line.partition(" = ")
            tree[list(tree)[-1]][key] = value
    return tree


def _ini(tree: Any, data: bytes) -> bytes:
    lines = []
    for section, entries in tree.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value}" for key, value in entries.items()] if isinstance(entries, dict) else [str(entries)]
    return "\n".join(lines).encode("utf-8", "replace")


def _headers(data: bytes) -> Any:
    return [line.split(": ", 1) for line in data.decode().partition("\n\n")[0].splitlines()]


def _mail(tree: Any, data: bytes) -> bytes:
    fields = [": ".join(map(str, field)) if isinstance(field, list) else str(field) for field in tree]
    return ("\n".join(fields) + "\n\nText.\n").encode("utf-8", "replace")


JSON = Format(json.loads, lambda tree, data: _json(tree))
JSON_LINES = Format(
    lambda data: [json.loads(line) for line in data.splitlines()],
    lambda tree, data: b"".join(_json(line) + b"\n" for line in tree),
)
TOML = Format(lambda data: tomllib.loads(data.decode()), lambda tree, data: toml(tree).encode("utf-8", "replace"))
SAFETENSORS = Format(_header, _with_header)
ARRAYS = Format(_arrays, _packed)
ENTRY_POINTS = Format(_sections, _ini)
METADATA = Format(_headers, _mail)
LINES = Format(
    lambda data: data.decode().splitlines(),
    lambda tree, data: "\n".join(map(str, tree)).encode("utf-8", "replace"),
)
