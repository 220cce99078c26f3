"""Windows of tokens in the shards of one folder: each once an epoch, in an order that is computed and not stored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from axon_core.errors import DataError
from axon_core.randomness import Key
from axon_core.text.permutation import Permutation, hashed
from axon_core.text.shards.files import Shard
from axon_core.text.shards.folder import ShardFolder

__all__ = ["ShardReader", "ShardWindows", "Stretch"]

_OPEN = 128
"""How many shards of a folder are open at a time."""


class Stretch(NamedTuple):
    """Tokens of a shard that follow each other."""

    shard: int
    """The number of the shard in its folder."""
    begin: int
    end: int

    @property
    def tokens(self) -> int:
        """How many they are."""
        return self.end - self.begin


class ShardReader:
    """Reads windows from the shards of a folder, of which a few are open at a time.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: ShardFolder) -> None:
        self.folder = folder
        self._open = lru_cache(maxsize=_OPEN)(folder.open)

    def window(self, shard: int, begin: int, size: int) -> Int[Tensor, " n"]:
        """Return `size` tokens of a shard, from `begin` on.

        Raises:
            DataError: the shard is missing, truncated or damaged.
        """
        tokens = self._open(shard).read(begin, begin + size)
        if tokens.max() >= self.folder.index.vocab_size:
            raise DataError(
                f"the shard {self._open(shard).path} is damaged: it has token {tokens.max()}, but its tokenizer only "
                f"{self.folder.index.vocab_size}; restore it"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def documents(self, shard: int, begin: int, size: int) -> Int[Tensor, " n"]:
        """Return the documents of so many tokens, numbered from 0 at `begin`. Raises `DataError` as `window` does."""
        ends = self._open(shard).ends
        first = bisect_right(ends, begin)
        starts = np.array(ends[first : bisect_right(ends, begin + size - 1, lo=first)], np.int64) - begin
        return torch.from_numpy(np.searchsorted(starts, np.arange(size), side="right"))

    def opened(self, shard: int) -> Shard:
        """Return a shard. Raises `DataError` if it is missing, truncated or damaged."""
        return self._open(shard)


class ShardWindows:
    """Where the windows of `context + 1` tokens begin that a training sees, in stretches of shards.

    An epoch cuts each stretch, from an offset of its own, into windows that follow each other, and visits all windows
    of all stretches in a shuffled order. Nothing is stored: place j of epoch e is computed from the key.

    Args:
        stretches: what to cut; of those shorter than a window nothing is seen.
        context: number of targets in a window.
        key: what offsets and order depend on.

    Attributes:
        per_epoch: how many windows an epoch has.
    """

    def __init__(self, stretches: Sequence[Stretch], context: int, key: Key) -> None:
        self._stretches = [stretch for stretch in stretches if stretch.tokens > context]
        self._context, self._key = context, key
        lengths = np.array([stretch.tokens for stretch in self._stretches], np.int64)
        counts = np.maximum(1, (lengths - context) // context)
        self._slack = lengths - counts * context  # offsets that leave all windows whole
        self._ends = counts.cumsum()
        self.per_epoch = int(self._ends[-1]) if self._stretches else 0
        self._order = lru_cache(maxsize=2)(self._permutation)

    def at(self, numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return the shards of windows, counted over all epochs, and the tokens that they begin with."""
        found = [(self._stretches[0].shard, 0)] * len(numbers)
        epochs, places = np.divmod(numbers, self.per_epoch)
        for epoch in np.unique(epochs):
            chosen = np.flatnonzero(epochs == epoch)
            windows = self._order(int(epoch))(places[chosen])
            parts = np.searchsorted(self._ends, windows, side="right")
            inside = windows - np.where(parts > 0, self._ends[parts - 1], 0)
            begins = self._offsets(int(epoch), parts) + inside * self._context
            for place, part, begin in zip(chosen, parts, begins, strict=True):
                stretch = self._stretches[part]
                found[place] = (stretch.shard, stretch.begin + int(begin))
        return found

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.per_epoch, self._key(epoch))

    def _offsets(self, epoch: int, parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the offset of each stretch in an epoch."""
        seed = np.uint64(self._key(epoch, "offset").seed)
        mixed = hashed(hashed(parts.astype(np.uint64)) + seed)
        return (mixed % self._slack[parts].astype(np.uint64)).astype(np.int64)
