"""What seeds say of a mean and of a difference: standard errors, intervals, p-values, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "BOOTSTRAP_PAIRS",
    "CONFIDENCE",
    "LEVEL",
    "RESAMPLES",
    "PairedDifference",
    "SeedMean",
    "bootstrap_interval",
    "holm",
    "mean_over_seeds",
    "paired_difference",
    "paired_t_test",
    "t_interval",
]

LEVEL = 0.05
"""A difference is claimed where its corrected p-value is below it."""
CONFIDENCE = 1 - LEVEL
"""The confidence of the intervals."""
BOOTSTRAP_PAIRS = 10
"""The least number of pairs whose interval is a bootstrap's: fewer say too little of the shape of a distribution."""
RESAMPLES = 9_999
"""Resamples of a bootstrap."""
_ROUNDING = 1e-12  # relative: a spread below it is what float64 makes of equal differences


class SeedMean(NamedTuple):
    """A mean over seeds."""

    mean: float
    """x̄."""
    standard_error: float | None
    """s / √n; None for one value."""
    n: int
    """The number of values."""


class PairedDifference(NamedTuple):
    """What pairs of values with the same seeds say of their difference."""

    mean: float
    """The mean of the differences."""
    standard_error: float | None
    """The standard error of the differences; None for one pair."""
    pairs: int
    """The number of pairs."""
    interval: tuple[float, float] | None
    """An interval of confidence `CONFIDENCE`; None for one pair, or if all differences are equal."""
    method: Literal["t", "bootstrap"] | None
    """Where the interval comes from."""
    p: float | None
    """The p-value of the paired t test, not corrected; None where there is no interval."""


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Return the mean of one or more values and its standard error.

    x̄ = Σ xᵢ / n,  se = s / √n,  s² = Σ (xᵢ − x̄)² / (n − 1)

    >>> mean_over_seeds([1.0, 2.0, 3.0])
    SeedMean(mean=2.0, standard_error=0.5773502691896258, n=3)

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("a mean needs at least one value, got none")
    x, n = np.asarray(values, np.float64), len(values)
    return SeedMean(float(x.mean()), float(x.std(ddof=1) / math.sqrt(n)) if n > 1 else None, n)


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Student's interval for the mean of two or more differences.

    d̄ ± t · s / √n, where t is the (1 + confidence) / 2 quantile of Student's distribution with n − 1 degrees of
    freedom. It covers the true mean as often as it says if the differences are normally distributed.

    >>> [round(end, 4) for end in t_interval([1.5379, 1.5418, 1.5453])]
    [1.5325, 1.5509]

    Raises:
        ValueError: there are fewer than two differences.
    """
    mean, error, n = mean_over_seeds(differences)
    if error is None:
        raise ValueError(f"an interval needs at least two differences, got {n}")
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return mean - half, mean + half


def bootstrap_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the bootstrap's BCa interval for the mean of differences; equal ones always give equal intervals.

    `RESAMPLES` resamples of the differences, so of pairs, give the distribution of their mean; its percentiles are
    corrected for bias and for skewness (Efron 1987, Better Bootstrap Confidence Intervals). It assumes no normal
    distribution, but is a little too narrow for few differences, so `paired_difference` uses it from `BOOTSTRAP_PAIRS`.

    >>> low, high = bootstrap_interval([0.1, 0.3, 0.2, 0.4, 0.2, 0.1, 0.3, 0.2, 0.2, 0.4])
    >>> round(low, 2), round(high, 2)
    (0.18, 0.3)
    """
    generator = np.random.default_rng(0)
    found = stats.bootstrap(
        (np.asarray(differences, np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="BCa",
        rng=generator,
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_t_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t test: how likely so large a |d̄| is if the true mean is 0.

    p = 2 · P(T > |d̄| / (s / √n)), where T has Student's distribution with n − 1 degrees of freedom.

    >>> round(paired_t_test([0.1, 0.3, 0.2]), 4)
    0.0742

    Raises:
        ValueError: there are fewer than two differences, or all are equal.
    """
    mean, error, n = mean_over_seeds(differences)
    if not error:
        raise ValueError(f"a t test needs two or more differences that are not all equal, got {list(differences)}")
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Return what pairs say of the mean of dᵢ = valuesᵢ − referenceᵢ, one pair for each seed.

    Both runs of a seed see the same data in the same order, so part of what the seed changes is in both, and their
    difference varies less than either. The interval is Student's, or the bootstrap's from `BOOTSTRAP_PAIRS` pairs. If
    all differences are equal, as of settings that change nothing or of a coarse metric, their spread says nothing:
    there is neither interval nor p-value, so nothing is claimed.

    >>> paired_difference([1.2, 1.3], [1.0, 1.0]).pairs
    2

    Raises:
        ValueError: the numbers of values differ, or there is none.
    """
    if len(values) != len(reference):
        raise ValueError(f"values must come in pairs, got {len(values)} and {len(reference)}")
    a, b = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    differences = (a - b).tolist()
    mean, error, n = mean_over_seeds(differences)
    if error is None:
        return PairedDifference(mean, None, n, None, None, None)
    if error <= _ROUNDING * float(np.abs([a, b]).max()):
        return PairedDifference(mean, 0.0, n, None, None, None)
    p = paired_t_test(differences)
    if n >= BOOTSTRAP_PAIRS:
        return PairedDifference(mean, error, n, bootstrap_interval(differences), "bootstrap", p)
    return PairedDifference(mean, error, n, t_interval(differences), "t", p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method, in the order given.

    With p₍₁₎ ≤ … ≤ p₍ₘ₎:  p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) · p₍ⱼ₎)

    Claiming all differences with p̃ < α, at most a share α of comparisons claims any that does not exist, whatever the
    differences have in common, such as the reference (Holm 1979, A Simple Sequentially Rejective Multiple Test
    Procedure).

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
