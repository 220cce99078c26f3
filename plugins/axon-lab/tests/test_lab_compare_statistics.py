"""The statistics of a comparison agree with scipy, with naive references, and with what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from axon_lab.compare.statistics import (
    RESAMPLES,
    bootstrap_interval,
    holm,
    mean_over_seeds,
    paired_difference,
    paired_t_test,
    t_interval,
)

SHAKESPEARE = [1.5379, 1.5418, 1.5453]
"""The losses of three seeds of a recipe, of docs/results.md."""

losses = st.floats(0.5, 5.0).map(lambda value: round(value, 4))
pairs = st.lists(st.tuples(losses, losses), min_size=2, max_size=9)
p_values = st.lists(st.floats(0, 1), max_size=12)


def sequential(p: list[float], alpha: float) -> set[int]:
    """Holm's procedure in its own words: reject from the smallest p-value on, until one is above α / (m − rank)."""
    rejected: set[int] = set()
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] >= alpha / (len(p) - rank):
            break
        rejected.add(int(place))
    return rejected


def test_the_interval_of_three_known_losses():
    mean, error, n = mean_over_seeds(SHAKESPEARE)
    low, high = t_interval(SHAKESPEARE)
    assert (round(mean, 4), n) == (1.5417, 3)
    assert round((high - low) / 2, 4) == 0.0092  # 4.303 · sd / √3
    assert (high - low) / 2 == pytest.approx(4.302652729696142 * np.std(SHAKESPEARE, ddof=1) / math.sqrt(3), rel=1e-12)
    assert error == pytest.approx(stats.sem(SHAKESPEARE), rel=1e-12)


@given(pairs)
def test_a_paired_difference_is_scipys(found: list[tuple[float, float]]):
    a, b = map(list, zip(*found, strict=True))
    result = paired_difference(a, b)
    d = np.subtract(a, b)
    assert result.mean == pytest.approx(np.mean(d), abs=1e-12)
    assert result.standard_error == pytest.approx(stats.sem(d), abs=1e-12)
    assert result.pairs == len(found)
    if np.ptp(d) < 1e-9:
        assert (result.interval, result.method, result.p) == (None, None, None)
        return
    expected = stats.ttest_rel(a, b)
    assert result.method == "t"
    assert result.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6, abs=1e-9)
    assert result.interval == pytest.approx(stats.t.interval(0.95, len(d) - 1, np.mean(d), stats.sem(d)), abs=1e-9)


@given(pairs, st.data())
def test_what_a_seed_adds_to_both_runs_changes_nothing(found: list[tuple[float, float]], data: st.DataObject):
    a, b = map(list, zip(*found, strict=True))
    seeds = data.draw(st.lists(st.integers(-64, 64).map(lambda value: value / 8), min_size=len(a), max_size=len(a)))
    moved = paired_difference(np.add(a, seeds).tolist(), np.add(b, seeds).tolist())
    alone = paired_difference(a, b)
    assert moved.mean == pytest.approx(alone.mean, abs=1e-9)
    assert moved.standard_error == pytest.approx(alone.standard_error, abs=1e-9)
    if alone.interval and moved.interval and alone.standard_error > 1e-5:
        assert moved.p == pytest.approx(alone.p, rel=1e-4, abs=1e-9)


@given(pairs)
def test_the_reference_and_the_other_may_change_places(found: list[tuple[float, float]]):
    a, b = map(list, zip(*found, strict=True))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert back.mean == -there.mean and back.p == there.p
    if there.interval and back.interval:
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)


@pytest.mark.parametrize("n", [10, 20])
def test_from_ten_pairs_on_the_interval_is_scipys_paired_bootstrap(n: int):
    rng = np.random.default_rng(n)
    a, b = rng.normal(1.5, 0.01, n), rng.gamma(2.0, 0.01, n) + 1.4
    expected = stats.bootstrap(
        (a, b),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    result = paired_difference(a.tolist(), b.tolist())
    assert result.method == "bootstrap"
    assert result.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert result.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert result.interval != pytest.approx(t_interval((a - b).tolist()), rel=1e-6)
    assert paired_difference(a[:9].tolist(), b[:9].tolist()).method == "t"


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = np.random.default_rng(5).normal(0.01, 0.02, 12).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_holms_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@settings(max_examples=300)
@given(p_values, st.floats(1e-3, 0.999))
def test_holm_rejects_what_the_sequential_procedure_rejects(p: list[float], alpha: float):
    corrected = holm(p)
    near = any(abs((len(p) - k) * value - alpha) < 1e-12 for k in range(len(p)) for value in p)
    if not near:  # where rounding decides
        assert {i for i, value in enumerate(corrected) if value < alpha} == sequential(p, alpha)
    assert all(before <= after <= 1 for before, after in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.asarray(corrected)[order]) >= 0)


@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [([1.0, 1.5], [1.0, 1.5], 0.0), ([1.3, 1.7, 2.1], [1.2, 1.6, 2.0], 0.1)],  # the second differ by rounding only
)
def test_equal_differences_support_no_claim(a: list[float], b: list[float], mean: float):
    result = paired_difference(a, b)
    assert result.mean == pytest.approx(mean)
    assert (result.interval, result.p, result.pairs) == (None, None, len(a))


def test_one_pair_has_a_difference_and_nothing_else():
    result = paired_difference([1.2], [1.0])
    assert result.mean == pytest.approx(0.2)
    assert (result.standard_error, result.interval, result.p, result.pairs) == (None, None, None, 1)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        mean_over_seeds([])
    with pytest.raises(ValueError, match="at least two differences, got 1"):
        t_interval([1.0])
    with pytest.raises(ValueError, match="in pairs, got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    for differences in ([1.0], [0.5, 0.5]):
        with pytest.raises(ValueError, match="not all equal"):
            paired_t_test(differences)
