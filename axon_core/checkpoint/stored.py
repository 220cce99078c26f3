"""Tensors on disk, whole or in pieces over several files, of which a process reads only what it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from axon_core.checkpoint.atomic import TENSORS
from axon_core.checkpoint.pieces import Piece, held
from axon_core.checkpoint.row_order import order_of
from axon_core.checkpoint.shard_names import is_shard, missing_shard, shard_name
from axon_core.checkpoint.tensor_files import DTYPES, read_header, write_tensors
from axon_core.errors import CheckpointError
from axon_core.processes import is_spread

__all__ = ["StoredTensor", "stored_tensors", "write_pieces"]

_SHARDING = "DCP_SHARDING_INFO"  # as torch.distributed.checkpoint calls it, whose readers need "saved_offsets"


@dataclass(frozen=True)
class _Block:
    """A block of a tensor in a file."""

    file: Path
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, read when it is asked for."""

    name: str
    """Its name in the files."""
    shape: tuple[int, ...]
    """The shape of the whole."""
    dtype: torch.dtype
    """The dtype it was saved in."""
    blocks: tuple[_Block, ...]
    """Where its numbers are."""

    def read(self) -> Shaped[Tensor, ...]:
        """Return the whole tensor, in memory of its own. Raises `CheckpointError` if a file is missing or damaged."""
        return self.part((0,) * len(self.shape), self.shape)

    def part(self, offsets: Sequence[int], sizes: Sequence[int]) -> Shaped[Tensor, ...]:
        """Return the block that begins at `offsets` and has the shape `sizes`; nothing else is read.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        result = torch.empty(tuple(sizes), dtype=self.dtype)
        for block in self.blocks:
            first = [max(mine, theirs) for mine, theirs in zip(offsets, block.offsets, strict=True)]
            last = [
                min(mine + size, theirs + length)
                for mine, size, theirs, length in zip(offsets, sizes, block.offsets, block.sizes, strict=True)
            ]
            if all(a < b for a, b in zip(first, last, strict=True)):
                there = _slices(first, last, block.offsets)
                result[_slices(first, last, offsets)] = _read(block.file, self.name, there)
        return result

    def like(self, tensor: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
        """Return it where `tensor` is and as `tensor` is spread, which has its shape; only that piece is read.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        if not is_spread(tensor):
            return self.read().to(tensor.device)
        from torch.distributed.tensor import DTensor  # here, and not where one process needs none of it

        mine = held(tensor)
        if (order := order_of(tensor)) is None:
            block = self.part(mine.offsets, mine.local.shape)
        else:
            first = mine.offsets[0]
            block = self._rows(order[first : first + len(mine.local)].tolist(), mine)
        block = block.to(mine.local.device)
        mesh, placements = tensor.device_mesh, tensor.placements
        return DTensor.from_local(block, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())

    def _rows(self, rows: Sequence[int], like: Piece) -> Tensor:
        """Return rows by their numbers, and of each what `like` has of it. Consecutive ones are read at once."""
        result = torch.empty_like(like.local, dtype=self.dtype, device="cpu")
        begins = [i for i, row in enumerate(rows) if not i or row != rows[i - 1] + 1]
        for begin, end in pairwise([*begins, len(rows)]):
            sizes = (end - begin, *like.local.shape[1:])
            result[begin:end] = self.part((rows[begin], *like.offsets[1:]), sizes)
        return result


def write_pieces(folder: Path, pieces: Mapping[str, Piece], number: int, of: int) -> tuple[str, str]:
    """Write the pieces that process `number` owns, counted from 0, and return the file's name and its SHA-256.

    A single process writes whole tensors. Of several, each file says of each tensor where its block begins, in the
    words of torch.distributed.checkpoint, and the shape of the whole.

    Raises:
        OSError: the file cannot be written.
    """
    blocks = {name: piece.local for name, piece in pieces.items()}
    name = shard_name(number, of)
    if of == 1:
        return name, write_tensors(folder / name, blocks)
    places = {name: {"saved_offsets": list(p.offsets), "shape": list(p.shape)} for name, p in pieces.items()}
    metadata = {_SHARDING: json.dumps(places, allow_nan=False), "DCP_VERSION": "1.0", "format": "pt"}
    return name, write_tensors(folder / name, blocks, metadata)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors that `write_pieces` wrote into a folder, by name. Only the files' headers are read.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit the others.
    """
    names = [file.name for file in folder.iterdir()]
    if (missing := missing_shard(names)) is not None:
        raise CheckpointError(f"{folder / missing} is damaged: it is missing")
    shards = [name for name in sorted(names) if is_shard(name)]
    found: dict[str, StoredTensor] = {}
    for file in [folder / TENSORS] if TENSORS in names else [folder / name for name in shards]:
        try:
            for tensor in _in_file(file):
                before = found.get(tensor.name)
                if before is not None and (before.shape, before.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(f"{tensor.name} has another shape or dtype than in the files before")
                blocks = tensor.blocks if before is None else before.blocks + tensor.blocks
                found[tensor.name] = StoredTensor(tensor.name, tensor.shape, tensor.dtype, blocks)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from None
    for tensor in found.values():
        if sum(prod(block.sizes) for block in tensor.blocks) != prod(tensor.shape):
            raise CheckpointError(f"the tensors in {folder} are damaged: {tensor.name} is not whole")
    return found


def _in_file(file: Path) -> list[StoredTensor]:
    """Return what a file has of each tensor."""
    _, entries, metadata = read_header(file)
    places = cast(dict[str, dict[str, Any]], json.loads(metadata.get(_SHARDING, "{}")))
    found: list[StoredTensor] = []
    for name, entry in entries.items():
        sizes = tuple(entry["shape"])
        place = places.get(name, {"saved_offsets": (0,) * len(sizes), "shape": sizes})
        offsets, shape = tuple(place["saved_offsets"]), tuple(place["shape"])
        inside = zip(offsets, sizes, shape, strict=True)
        if not all(isinstance(n, int) for n in offsets + shape) or not all(0 <= o <= o + n <= m for o, n, m in inside):
            raise ValueError(f"{name} has a block that does not lie in it")
        found.append(StoredTensor(name, shape, DTYPES[entry["dtype"]], (_Block(file, offsets, sizes),)))
    return found


def _slices(first: Sequence[int], last: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(first, last, origin, strict=True))


def _read(file: Path, name: str, part: tuple[slice, ...]) -> Tensor:
    """Return a part of a tensor in a file, opened for each so that what was read does not stay in memory."""
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_slice(name)[part] if part else opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
