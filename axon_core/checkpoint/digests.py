"""Checksums of data in memory, which tell different data apart."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from axon_core.checkpoint.pieces import whole

__all__ = ["digest"]


def digest(*parts: Any) -> str:
    """Return the SHA-256 of tensors, texts, bytes, numbers, None, and lists, tuples and dictionaries of them.

    A tensor that is spread over processes counts as a whole; all of them call it alike.
    Data of another type, length or order have another one; the order of a dictionary does not matter.

    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False

    Raises:
        TypeError: there is something else among them.
    """
    total = hashlib.sha256()
    for part in parts:
        _add(total, part)
    return total.hexdigest()


def _add(total: Any, node: Any) -> None:
    match node:
        case Tensor():
            # Flattened before its bytes are viewed: a single number has no axis to view them along.
            flat = whole(node).cpu().contiguous().flatten().view(torch.uint8)
            total.update(f"tensor {node.dtype} {tuple(node.shape)};".encode())
            total.update(flat.numpy().data)
        case str() | bytes():
            content = node.encode("utf-8", "surrogatepass") if isinstance(node, str) else node
            total.update(f"{type(node).__name__} {len(content)};".encode() + content)
        case Mapping():
            items = sorted(cast(Mapping[str, Any], node).items())
            total.update(f"dict {len(items)};".encode())
            for item in items:
                _add(total, list(item))
        case list() | tuple():
            values = cast(list[Any], node)
            kinds = {type(value) for value in values}
            total.update(f"list {len(values)} {'int' if kinds == {int} else ''};".encode())
            if kinds == {int}:  # the tokens of a text, millions of them
                total.update(_integers(values))
                return
            for value in values:
                _add(total, value)
        case None | bool() | int() | float():
            total.update(f"{type(node).__name__} {node!r};".encode())
        case _:
            raise TypeError(f"cannot compute a checksum of a {type(node).__name__}")


def _integers(values: list[int]) -> bytes:
    try:
        return array("q", values).tobytes()
    except OverflowError:
        return repr(list(values)).encode()
