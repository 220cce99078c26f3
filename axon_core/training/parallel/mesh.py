"""The mesh of a sharded training's processes, and which block of a matrix each of them has.

Its axes are `replicate`, the copies of the weights; `shard`, the workers that share one; and `tensor`, the processes of
a worker, which are neighbours and so in one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from axon_core.checkpoint.row_order import order_of
from axon_core.training.parallel.group import limit_waiting

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["ShardBlock", "assemble", "blocks_of", "copy_group", "make_mesh"]

_AXES = ("replicate", "shard", "tensor")
_COPY = "copy"


@dataclass(frozen=True)
class ShardBlock:
    """What one process has of a tensor."""

    index: tuple[slice | Tensor, ...]
    """Where it is in the whole, in the model's order of rows."""
    shape: tuple[int, ...]
    """Its shape."""

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


def make_mesh(kind: str, sizes: tuple[int, int, int], timeout: float) -> DeviceMesh:
    """Return a mesh of these sizes on a kind of device, each of whose groups waits for so many seconds at most."""
    mesh = init_device_mesh(kind, sizes, mesh_dim_names=_AXES)
    groups = mesh.get_all_groups()
    if sizes[-1] > 1:
        groups.append(mesh["shard", "tensor"]._flatten(_COPY).get_group())  # pyright: ignore[reportPrivateUsage]
    limit_waiting(timeout, *groups)
    return mesh


def copy_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """Return the group of the processes that have one copy of what is spread over a mesh."""
    return mesh.get_group(_COPY if "tensor" in _names(mesh) else "shard")


def blocks_of(tensor: DTensor) -> list[ShardBlock]:
    """Return what each process of its `copy_group` has of a tensor, in the order of their numbers there."""
    from torch.distributed.tensor import Replicate

    names = _names(tensor.device_mesh)
    workers = tensor.device_mesh.size(names.index("shard"))
    among, divided = 1, Replicate()
    if "tensor" in names:
        among, divided = tensor.device_mesh.size(names.index("tensor")), tensor.placements[names.index("tensor")]
    order, shape = order_of(tensor), list(tensor.shape)
    for axis in (axis for axis in range(min(2, tensor.ndim)) if divided.is_shard(axis)):
        shape[axis] //= among
    most = -(-shape[0] // workers)  # rows, as `torch.chunk` cuts them
    blocks: list[ShardBlock] = []
    for number in range(workers * among):
        worker, process = divmod(number, among)
        rows = max(0, min(most, shape[0] - worker * most))
        first = worker * most + (process * shape[0] if divided.is_shard(0) else 0)
        index: tuple[slice | Tensor, ...] = (slice(first, first + rows) if order is None else order[first:][:rows],)
        if divided.is_shard(1):
            index = (*index, slice(process * shape[1], (process + 1) * shape[1]))
        blocks.append(ShardBlock(index, (rows, *shape[1:])))
    return blocks


def assemble(shape: Sequence[int], blocks: Sequence[ShardBlock], pieces: Sequence[Tensor]) -> Shaped[Tensor, ...]:
    """Return the tensor of this shape that has these pieces, flattened, as its blocks."""
    whole = pieces[0].new_empty(tuple(shape))
    for block, piece in zip(blocks, pieces, strict=True):
        whole[block.index] = piece.view(block.shape)
    return whole


def _names(mesh: DeviceMesh) -> tuple[str, ...]:
    return mesh.mesh_dim_names or ()
