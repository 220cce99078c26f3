"""Batches of about equally many tokens, of sentences of about the same length, in an order without state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from axon_core import ConfigError, Key
from axon_core.text import PAD


class TokenBatches:
    """Divides pairs of sentences into batches of `size` target tokens, or somewhat more.

    In each epoch the pairs, sorted by the longer side's length and then by the target's, ties in random order, are cut
    into `per_epoch` batches with about the same number of target tokens, and these come in random order. So there is
    little padding, each pair comes once per epoch, and batch i is the same whenever it is requested. Source: after
    arXiv 1706.03762, Section 5.1.

    Args:
        sources: lengths of the sources.
        targets: lengths of the targets.
        size: target tokens in a batch.
        key: what the order depends on.

    Raises:
        ConfigError: a single target is longer than a batch.
    """

    def __init__(self, sources: Sequence[int], targets: Sequence[int], size: int, key: Key) -> None:
        if size < max(targets):
            message = f"must be at least the {max(targets)} tokens of the longest target, got {size}"
            raise ConfigError([(("batch_size",), message)])
        self._targets = torch.tensor(targets)
        longer = torch.maximum(self._targets, torch.tensor(sources))
        self._ranks = longer.double() * (max(targets) + 1) + self._targets  # the rest of a double breaks ties at random
        self.per_epoch = max(1, int(self._targets.sum()) // size)
        self._key = key
        self._epoch = lru_cache(maxsize=2)(self._cut)

    def __getitem__(self, step: int) -> Int[Tensor, " b"]:
        """Return the numbers of the pairs in batch `step`, counted through all epochs."""
        epoch, index = divmod(step, self.per_epoch)
        return self._epoch(epoch)[index]

    def _cut(self, epoch: int) -> list[Tensor]:
        generator = self._key(epoch).generator()
        chance = torch.rand(len(self._ranks), generator=generator, dtype=torch.float64)
        order = (self._ranks + chance).argsort()
        lengths = self._targets[order]
        before = lengths.cumsum(0) - lengths
        numbers = before * self.per_epoch // int(lengths.sum())
        batches = order.split(numbers.bincount().tolist())  # none is empty, as no target is longer than a batch
        return [batches[i] for i in torch.randperm(self.per_epoch, generator=generator).tolist()]


def pad(rows: Sequence[Sequence[int]]) -> Int[Tensor, "b n"]:
    """Return `rows` as one tensor, padded at their ends."""
    n = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (n - len(row))] for row in rows])
