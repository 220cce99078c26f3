"""The order that examples are learned from in: a pure function of the step, so that a run may stop and continue."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from axon_core.errors import UsageError
from axon_core.randomness import Key

__all__ = ["EPOCHS", "Order", "across_epochs"]

EPOCHS = 1 << 16
"""How often a single step may go through all examples: more is a typo that would take forever."""


class Order:
    """Which of `size` examples a step learns from: all once an epoch, each epoch in another order."""

    def __init__(self, size: int, key: Key) -> None:
        self._size, self._key = size, key
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def batch(self, step: int, size: int) -> Int[Tensor, " b"]:
        """Return the numbers of the `size` examples of a step; raises `UsageError` as `across_epochs` does."""
        return across_epochs(self._epoch, self._size, step, size)

    def _shuffled(self, epoch: int) -> Int[Tensor, " n"]:
        return torch.randperm(self._size, generator=self._key(epoch).generator())


def across_epochs(epoch: Callable[[int], Int[Tensor, " n"]], per_epoch: int, step: int, size: int) -> Int[Tensor, " b"]:
    """Return entries `step * size` up to the next step's first of the sequence epoch(0), epoch(1), …, laid end to end.

    Args:
        epoch: returns the `per_epoch` entries of an epoch.
        per_epoch: how many they are.
        step: counted from 0.
        size: entries in a step.

    Raises:
        UsageError: a step would go through more than `EPOCHS` epochs.
    """
    if size > EPOCHS * per_epoch:
        raise UsageError(
            f"a step can go through all examples {EPOCHS:,} times at most, but a batch of {size:,} goes through these "
            f"{per_epoch:,} more often; make the batch smaller"
        )
    picks: list[Tensor] = []
    first, end = step * size, (step + 1) * size
    while first < end:
        number, skip = divmod(first, per_epoch)
        picks.append(epoch(number)[skip : skip + end - first])
        first += len(picks[-1])
    return torch.cat(picks)
