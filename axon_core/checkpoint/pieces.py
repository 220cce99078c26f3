"""The pieces of tensors that this process holds, and which of them it writes: every piece once, balanced by bytes.

A tensor of PyTorch's `DTensor` is spread over processes; any other is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Shaped
from torch import Tensor

from axon_core.checkpoint.row_order import in_model_order, order_of
from axon_core.errors import ContractError
from axon_core.processes import gather, is_spread, local, parted, rank, world

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Piece", "held", "owned", "piece_of", "whole"]


@dataclass(frozen=True)
class Piece:
    """What this process holds of a tensor: a block of it, which may have no elements."""

    local: Shaped[Tensor, ...]
    """The block."""
    offsets: tuple[int, ...]
    """Where in the whole it begins, along each axis."""
    shape: tuple[int, ...]
    """The shape of the whole."""

    @property
    def is_void(self) -> bool:
        """Whether this process holds nothing of a tensor that has elements."""
        return not self.local.numel() and prod(self.shape) > 0


def whole(tensor: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
    """Return the whole tensor, without gradients; of one that is spread, all processes put it together at this call.

    Raises:
        UsageError: it is spread over processes that have parted.
    """
    if not is_spread(tensor):
        return tensor.detach()
    if world() < tensor.device_mesh.size():
        raise parted()
    return in_model_order(_gathered(cast("DTensor", tensor.detach())), order_of(tensor))


def _gathered(tensor: DTensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard  # here, and not where one process needs none of it
    from torch.distributed.tensor.placement_types import _StridedShard  # pyright: ignore[reportPrivateUsage]

    if not any(isinstance(placement, _StridedShard) for placement in tensor.placements):
        return tensor.full_tensor()
    # Rows of rows: torch gathers them too, but warns of it each time.
    within, among = (tensor.device_mesh[name] for name in (tensor.device_mesh.mesh_dim_names or ())[-2:])
    shape = torch.Size((len(tensor) // among.size(), *tensor.shape[1:]))
    rows = DTensor.from_local(tensor.to_local(), within, [Shard(0)], shape=shape, stride=tensor.stride())
    return DTensor.from_local(rows.full_tensor(), among, [Shard(0)]).full_tensor()


def piece_of(tensor: Shaped[Tensor, ...]) -> Piece:
    """Return what this process holds of a tensor.

    If its rows are in another order than the model's, what it holds is no block. Then all processes put the tensor
    together at this call, and the piece is a copy of an equal part of its rows.
    """
    if order_of(tensor) is None:
        return held(tensor)
    rows = whole(tensor)
    first = sum(len(part) for part in rows.tensor_split(world())[: rank()])
    mine = rows.tensor_split(world())[rank()].clone()
    return Piece(mine, (first, *(0,) * (tensor.ndim - 1)), tuple(tensor.shape))


def held(tensor: Shaped[Tensor, ...]) -> Piece:
    """Return what this process holds of a tensor, whatever the order of its rows."""
    if not is_spread(tensor):
        return Piece(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(local(tensor.detach()), tuple(offsets), tuple(tensor.shape))


def owned(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Return the pieces that this process is to write; all processes call it alike.

    What only one process holds, it writes. What several hold is written by the one that has the least to write.

    Raises:
        ContractError: the processes hold tensors of different names.
    """
    if world() == 1:
        return dict(pieces)
    here: dict[str, tuple[list[int], int] | None] = {
        name: None if piece.is_void else (list(piece.offsets), piece.local.nbytes) for name, piece in pieces.items()
    }
    held = gather(here)
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}
    holders: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for number, theirs in enumerate(held):
        if odd := sorted(theirs.keys() ^ held[0].keys()):
            raise ContractError(
                f"all processes must have the same state to be saved, but {odd[0]} is in that of only one of process 0 "
                f"and process {number}"
            )
        for name, found in theirs.items():
            if found is not None:
                block = (name, tuple(found[0]))
                sizes[block] = found[1]
                holders.setdefault(block, []).append(number)
    load = [0] * len(held)
    mine: dict[str, Piece] = {}
    for block in sorted(holders, key=lambda block: (len(holders[block]) > 1, -sizes[block], block)):
        writer = min(holders[block], key=lambda number: load[number])
        load[writer] += sizes[block]
        if writer == rank():
            mine[block[0]] = pieces[block[0]]
    return mine
