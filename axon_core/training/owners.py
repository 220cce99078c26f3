"""Work on whole tensors divided among processes: each owns some, and hands its results round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from axon_core.processes import is_spread, world
from axon_core.training.parallel.mesh import assemble, blocks_of, copy_group

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["on_owners"]

OwnersWork = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""Makes a tensor of the same shape of each whole tensor, given the parameters they belong to."""


def on_owners(parameters: Sequence[Tensor], values: Sequence[Tensor], work: OwnersWork) -> list[Tensor]:
    """Return this process's parts of `work(parameters, whole values)`, where each process does the work of some.

    The parts of a sharded parameter's value go to its owner; other values every process has already. Results come back
    the same way. Each process sends and receives no value more than once.

    Args:
        parameters: parameters, sharded (a `DTensor`) or the same in all processes.
        values: for each parameter, this process's part of a tensor of its shape.
        work: what is done; its results may not depend on what else it is given.
    """
    if world() == 1 or not parameters:
        return work(parameters, values) if parameters else []
    results: list[Tensor] = list(values)
    by_group: dict[Any, list[int]] = {}
    for i, parameter in enumerate(parameters):
        by_group.setdefault(parameter.device_mesh if is_spread(parameter) else None, []).append(i)
    for mesh, members in by_group.items():
        divide = _of_replicas if mesh is None else _of_shards
        found = divide([parameters[i] for i in members], [values[i] for i in members], work)
        for i, result in zip(members, found, strict=True):
            results[i] = result
    return results


def _of_replicas(parameters: Sequence[Tensor], values: Sequence[Tensor], work: OwnersWork) -> list[Tensor]:
    owners = _owners([value.numel() for value in values], world())
    mine = [i for i, owner in enumerate(owners) if owner == dist.get_rank()]
    made = work([parameters[i] for i in mine], [values[i] for i in mine]) if mine else []
    sizes = [sum(values[i].numel() for i, owner in enumerate(owners) if owner == r) for r in range(world())]
    sent = values[0].new_zeros(max(sizes))
    if made:
        sent[: sizes[dist.get_rank()]] = torch.cat([result.flatten() for result in made])
    received = values[0].new_empty(world() * len(sent))
    dist.all_gather_single(received, sent)
    received = received.view(world(), -1)
    taken, results = [0] * world(), list[Tensor]()
    for value, owner in zip(values, owners, strict=True):
        results.append(received[owner, taken[owner] : taken[owner] + value.numel()].view_as(value))
        taken[owner] += value.numel()
    return results


def _of_shards(parameters: Sequence[Tensor], values: Sequence[Tensor], work: OwnersWork) -> list[Tensor]:
    group = copy_group(cast("DTensor", parameters[0]).device_mesh)  # of a hybrid mesh, each copy does all the work
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    owners = _owners([parameter.numel() for parameter in parameters], size)
    blocks = [blocks_of(cast("DTensor", parameter)) for parameter in parameters]
    owned = [[i for i, owner in enumerate(owners) if owner == r] for r in range(size)]
    # Process r sends, to each owner, its block of all that it owns; from process r, an owner receives r's block.
    out = [sum(blocks[i][rank].numel for i in those) for those in owned]
    back = [sum(blocks[i][r].numel for i in owned[rank]) for r in range(size)]
    sent = torch.cat([values[i].flatten() for those in owned for i in those])
    received = sent.new_empty(sum(back))
    dist.all_to_all_single(received, sent, back, out, group=group)
    pieces = _unpacked(received, [[blocks[i][r].numel for i in owned[rank]] for r in range(size)])
    whole = [
        assemble(parameters[i].shape, blocks[i], [pieces[r][n] for r in range(size)]) for n, i in enumerate(owned[rank])
    ]
    made = work([parameters[i] for i in owned[rank]], whole) if whole else []
    results = dict(zip(owned[rank], made, strict=True))
    answers = [results[i][blocks[i][r].index].flatten() for r in range(size) for i in owned[rank]]
    answer = torch.cat(answers) if answers else sent.new_empty(0)
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, answer, out, back, group=group)
    mine = _unpacked(returned, [[blocks[i][rank].numel for i in those] for those in owned])
    parts: list[Tensor] = list(values)
    for those, found in zip(owned, mine, strict=True):
        for i, piece in zip(those, found, strict=True):
            parts[i] = piece.view_as(values[i])
    return parts


def _unpacked(flat: Tensor, sizes: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """Cut a flat tensor into pieces of these sizes."""
    pieces = iter(flat.split([n for group in sizes for n in group]))
    return [[next(pieces) for _ in group] for group in sizes]


def _owners(sizes: Sequence[int], among: int) -> list[int]:
    """Return an owner for each of these sizes, largest first to whom has the least: the same in every process."""
    loads, owners = [0] * among, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += sizes[i]
    return owners
