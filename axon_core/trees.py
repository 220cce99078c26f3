"""Trees of tensors on disk: nested dictionaries and lists as JSON plus safetensors, never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axon_core.storage import TENSORS, TREE

__all__ = ["read_tree", "write_tree"]

_REFERENCE, _NUMBER = "$tensor", "$number"


def write_tree(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, strings and None as JSON plus safetensors.

    Tensors that are one and the same, such as tied weights, are written once.
    """
    tensors: dict[str, Tensor] = {}
    (folder / TREE).write_text(json.dumps(_detach(tree, "", tensors, {}), allow_nan=False), encoding="utf-8")
    save_file(tensors, folder / TENSORS)


def read_tree(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote; check it by `verify` first."""
    return _attach(json.loads((folder / TREE).read_text(encoding="utf-8-sig")), load_file(folder / TENSORS))


def _detach(node: Any, name: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """Move the tensors of `node` into `tensors`, and leave references."""
    if isinstance(node, Mapping):
        children = cast(Mapping[str, Any], node).items()
        return {key: _detach(child, f"{name}/{key}", tensors, seen) for key, child in children}
    if isinstance(node, list | tuple):
        children = enumerate(cast(list[Any], node))
        return [_detach(child, f"{name}/{i}", tensors, seen) for i, child in children]
    if isinstance(node, float) and not math.isfinite(node):  # which JSON has no words for
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
