"""Trees of tensors on disk: nested dictionaries and lists as JSON plus safetensors, never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from axon_core.checkpoint.atomic import TENSORS, TREE
from axon_core.checkpoint.pieces import owned, piece_of
from axon_core.checkpoint.stored import StoredTensor, stored_tensors, write_pieces
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ContractError
from axon_core.processes import is_first, rank, world

__all__ = ["read_tree", "read_values", "read_whole", "split_tree", "write_tree"]

_REFERENCE, _NUMBER = "$tensor", "$number"


def split_tree(tree: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Return nested dictionaries and lists of tensors, numbers, strings and None as JSON, and the tensors by name.

    One tensor in several places, such as tied weights, has one name.

    Raises:
        ContractError: it could not be read again, because it is nested too deep, or has too much besides tensors.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_detach(tree, "", tensors, {}), allow_nan=False)
    try:
        _parsed(text)
    except ValueError as error:
        raise ContractError(
            f"the state of the training is too large to be saved: {error}; store it in tensors"
        ) from None
    return text, tensors


def write_tree(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write what `split_tree` makes of a tree into a folder: each of all processes its part, at this call.

    Raises:
        ContractError: it could not be read again, because it is nested too deep, or has too much besides tensors.
    """
    text, tensors = split_tree(tree)
    if is_first():
        (folder / TREE).write_text(text, encoding="utf-8")
    write_pieces(folder, owned({name: piece_of(tensor) for name, tensor in tensors.items()}), rank(), world())


def read_tree(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote, with a `StoredTensor` for each tensor; check it by `verify` first.

    Raises:
        CheckpointError: it is damaged.
    """
    tree = read_values(folder)
    try:
        return _attach(tree, stored_tensors(folder))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / TENSORS} is damaged, or does not match {TREE}: {error!r}") from None


def read_whole(tree: Any) -> Any:
    """Return a tree from `read_tree` with its tensors read; one in several places is one tensor.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return _whole(tree, {})


def read_values(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote, with references in the place of tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        tree = _parsed((folder / TREE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / TREE} is damaged: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{folder / TREE} is damaged: it must contain an object, got {type(tree).__name__}")
    return cast(dict[str, Any], tree)


def _parsed(text: str) -> Any:
    return parse_json(text, parse_int=int)  # the state of a random generator may have integers of 128 bits


def _detach(node: Any, name: str, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    """Move the tensors of `node` into `tensors`, and leave references."""
    if isinstance(node, Mapping):
        children = cast(Mapping[str, Any], node).items()
        return {key: _detach(child, f"{name}/{key}", tensors, seen) for key, child in children}
    if isinstance(node, list | tuple):
        children = enumerate(cast(list[Any], node))
        return [_detach(child, f"{name}/{i}", tensors, seen) for i, child in children]
    if isinstance(node, float) and not math.isfinite(node):  # which JSON cannot express
        return {_NUMBER: str(node)}
    if not isinstance(node, Tensor):
        return node
    if id(node) not in seen:  # not by their memory: an empty piece of a tensor that is spread over processes has none
        seen[id(node)] = name
        tensors[name] = node
    return {_REFERENCE: seen[id(node)]}


def _attach(node: Any, tensors: Mapping[str, StoredTensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_REFERENCE}:
            return tensors[node[_REFERENCE]]
        if node.keys() == {_NUMBER}:
            return float(node[_NUMBER])
        return {key: _attach(child, tensors) for key, child in cast(dict[str, Any], node).items()}
    if isinstance(node, list):
        return [_attach(child, tensors) for child in cast(list[Any], node)]
    return node


def _whole(node: Any, read: dict[int, Tensor]) -> Any:
    if isinstance(node, StoredTensor):
        if id(node) not in read:
            read[id(node)] = node.read()
        return read[id(node)]
    if isinstance(node, dict):
        return {key: _whole(child, read) for key, child in cast(dict[str, Any], node).items()}
    if isinstance(node, list):
        return [_whole(child, read) for child in cast(list[Any], node)]
    return node
