"""Which of several sources each example comes from: shares that hold at every moment, known at any."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

__all__ = ["FINEST", "Mixture"]

FINEST = 10_000
"""Shares are multiples of one part in so many, unless they are simple fractions."""


class Mixture:
    """Examples 0, 1, 2, … divided among sources by weight: after n of them, source k has had n wₖ, less than one off.

    It is Tijdeman's solution of the chairman assignment problem: of the sources that may be next without getting ahead
    of their shares, it takes the one that would fall behind first. Since shares are multiples of 1/D, it repeats after
    D examples, and one period is kept.

    Args:
        weights: positive numbers, of which only the ratios count. They are rounded if their shares have no common
            denominator up to `FINEST`; no share becomes zero.

    Attributes:
        shares: the share of each source in the examples; they sum to 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        counts = _counts(weights)
        self.shares = tuple(Fraction(count, sum(counts)) for count in counts)
        self._sources = _period(counts)
        self._counts = np.array(counts)
        chosen = self._sources[:, None] == np.arange(len(counts))
        self._ranks = (chosen.cumsum(0) - 1)[np.arange(len(self._sources)), self._sources]

    def at(self, examples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each example, and how many examples before it come from that source."""
        period, place = np.divmod(examples, len(self._sources))
        source = self._sources[place]
        return source, period * self._counts[source] + self._ranks[place]


def _counts(weights: Sequence[float]) -> list[int]:
    """Return how many of each period's examples are of each source."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    if (common := lcm(*(share.denominator for share in shares))) <= FINEST:
        return [int(share * common) for share in shares]
    counts = [max(1, int(share * FINEST)) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda k: (counts[k] - shares[k] * FINEST, k))
    for k in by_rest[: max(0, FINEST - sum(counts))]:
        counts[k] += 1
    return counts


def _period(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the sources of a period's examples.

    With K sources and cₖ of D examples, source k may have its next turn at example n (counted from 1) if
    n cₖ / D − xₖ ≥ 1 / (2K − 2), where xₖ turns are past, and must have had it when n cₖ / D − xₖ reaches
    1 − 1 / (2K − 2): the earliest such n decides.
    """
    total, parts = sum(counts), max(1, 2 * len(counts) - 2)
    past = [0] * len(counts)
    order: list[int] = []
    for n in range(1, total + 1):
        ready = [k for k, count in enumerate(counts) if parts * (n * count - past[k] * total) >= total]
        # the least n' with n' cₖ / D − xₖ ≥ 1 − 1 / (2K − 2), as a fraction
        chosen = min(ready, key=lambda k: (Fraction(total * (parts * (past[k] + 1) - 1), counts[k]), k))
        past[chosen] += 1
        order.append(chosen)
    return np.array(order)
