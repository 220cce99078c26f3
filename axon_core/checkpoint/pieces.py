"""The pieces of tensors that this process holds, and which of them it writes: every piece once, balanced by bytes.

A tensor of PyTorch's `DTensor` is spread over processes; any other is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from axon_core.errors import ContractError
from axon_core.processes import gather, local, rank, world

__all__ = ["Piece", "owned", "piece_of", "whole"]


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
    """Return the whole tensor, without gradients; of one that is spread, all processes put it together at this call."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def piece_of(tensor: Shaped[Tensor, ...]) -> Piece:
    """Return what this process holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))
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
