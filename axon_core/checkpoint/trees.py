"""Trees of tensors on disk: nested dictionaries and lists as JSON plus safetensors, never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from axon_core.checkpoint.atomic import TENSORS, TREE
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ContractError

__all__ = ["read_tree", "read_values", "write_tree"]

_REFERENCE, _NUMBER = "$tensor", "$number"


def write_tree(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, strings and None as JSON plus safetensors.

    Tensors that are one and the same, such as tied weights, are written once.

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
    (folder / TREE).write_text(text, encoding="utf-8")
    save_file(tensors, folder / TENSORS)


def read_tree(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote; check it by `verify` first.

    Raises:
        CheckpointError: it is damaged.
    """
    tree = read_values(folder)
    try:
        return _attach(tree, load_file(folder / TENSORS))
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} is damaged, or does not match {TREE}: {error!r}") from None


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


def _detach(node: Any, name: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
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
    identity = (node.data_ptr(), node.shape, node.stride(), node.dtype) if node.numel() else (name,)
    if identity not in seen:
        seen[identity] = name
        # A copy, so that no two share memory, which safetensors refuses.
        tensors[name] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return {_REFERENCE: seen[identity]}


def _attach(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_REFERENCE}:
            return tensors[node[_REFERENCE]]
        if node.keys() == {_NUMBER}:
            return float(node[_NUMBER])
        return {key: _attach(child, tensors) for key, child in cast(dict[str, Any], node).items()}
    if isinstance(node, list):
        return [_attach(child, tensors) for child in cast(list[Any], node)]
    return node
