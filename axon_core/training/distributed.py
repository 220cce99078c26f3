"""Everything that several processes share, in one place; with a single process each reduction is the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["is_first", "share", "sum_counts", "sum_gradients", "sum_numbers"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Return whether this process speaks for all: the one of rank 0."""
    return not _active() or dist.get_rank() == 0


def share(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's rows of a global batch: the r-th of as many near-equal pieces as there are processes."""
    if not _active():
        return dict(batch)
    rank, world = dist.get_rank(), dist.get_world_size()
    return {name: rows.tensor_split(world)[rank] for name, rows in batch.items()}


def sum_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return each number summed over all processes, which must pass the same names in the same order."""
    if not _active():
        return dict(numbers)
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(numbers, total.tolist(), strict=True))


def sum_counts(counts: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Return each count summed over all processes; with a single process nothing waits for the device."""
    return sum_numbers({name: float(count) for name, count in counts.items()}) if _active() else counts


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum every parameter's gradient over all processes, in place; one without a gradient here counts as zero."""
    if not _active():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
