"""A shuffled order of any number of things, computed place by place, without a list of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from axon_core.randomness import Key

__all__ = ["Permutation", "hashed"]

_ROUNDS = 8
_STEP = 0x9E3779B97F4A7C15  # 2⁶⁴ divided by the golden ratio


class Permutation:
    """A bijection of 0 … `size` − 1 that looks random and depends on `key` alone.

    It is a Feistel network on numbers of 2h bits, h the least for which 4ʰ ≥ `size`: with halves l and r, each round
    computes (l, r) ← (r, l ⊕ f(r)), which is undone by its mirror image whatever f is. A result of `size` or more is
    mapped again until it is less, fewer than four times on average; this too is undone step by step.

    Args:
        size: how many numbers there are, from 1 to 2⁶² − 1.
        key: what the order depends on.
    """

    def __init__(self, size: int, key: Key) -> None:
        self.size = size
        half = max(1, -(-(size - 1).bit_length() // 2))
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        numbers = np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        self._keys = hashed(numbers * np.uint64(_STEP) + np.uint64(key.seed))

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at places of the order, each from 0 to `size` − 1."""
        found = self._network(places.astype(np.uint64))
        while (beyond := found >= np.uint64(self.size)).any():
            found[beyond] = self._network(found[beyond])
        return found.astype(np.int64)

    def _network(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (hashed(right + key) & self._mask)
        return left << self._half | right


def hashed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of 64 bits, each mixed by the finaliser of SplitMix64: equal ones stay equal, others differ."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
