"""What a comparison concludes, recomputed from its runs with scipy, and how often it claims what is not there."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from axon_lab.compare.conclusions import conclude, status_of
from axon_lab.compare.results import Axis, CellResult, LeftOut, RecipeComparison, RunResult
from axon_lab.compare.wording import Words

Values = dict[tuple[str, ...], dict[int, float | None]]


def comparison_of(
    axes: dict[str, tuple[str, ...]], seeds: tuple[int, ...], values: Values, **fields
) -> RecipeComparison:
    """A comparison whose cells are those of `values`, each with its seeds' losses; None is a run that failed."""
    cells = []
    for key in product(*axes.values()):
        if key in values:
            found = values[key]
            runs = [
                RunResult(seed=seed, status="failed" if loss is None else "done", folder=f"runs/{seed}", value=loss)
                for seed, loss in found.items()
            ]
            cells.append(CellResult(values=key, runs=tuple(runs)))
    left_out = [LeftOut(values=key, reason="does not fit") for key in product(*axes.values()) if key not in values]
    made = tuple(Axis(path=path, values=choices) for path, choices in axes.items())
    return RecipeComparison(
        recipe="tiny", axes=made, seeds=seeds, cells=tuple(cells), left_out=tuple(left_out), **fields
    )


def one_axis(**losses: list[float | None]) -> RecipeComparison:
    seeds = tuple(range(len(next(iter(losses.values())))))
    values: Values = {(name,): dict(zip(seeds, found, strict=True)) for name, found in losses.items()}
    return comparison_of({"attention": tuple(losses)}, seeds, values)


@pytest.fixture(scope="module")
def grid() -> tuple[RecipeComparison, Values]:
    """A grid with four seeds, of which the runs are stored in another order in every second cell."""
    rng = np.random.default_rng(3)
    axes = {"attention": ("MHA", "GQA", "MQA"), "norm": ("rmsnorm", "layernorm"), "rotary": ("rotary",)}
    seed_effects = rng.normal(0, 0.05, 4)
    values: Values = {}
    for i, key in enumerate(product(*axes.values())):
        losses = {seed: float(1.3 + 0.01 * i + seed_effects[seed] + rng.normal(0, 0.004)) for seed in range(4)}
        values[key] = dict(reversed(losses.items())) if i % 2 else losses
    values["GQA", "layernorm", "rotary"][2] = None
    return comparison_of(axes, (0, 1, 2, 3), values), values


def test_every_difference_of_a_grid_is_scipys_paired_test(grid: tuple[RecipeComparison, Values]):
    comparison, values = grid
    found = conclude(comparison).differences
    pairs: list[tuple[list[float], list[float]]] = []
    for attention in ("GQA", "MQA"):  # main effects: the means over the norms, of seeds that are whole
        seeds = [0, 1, 3] if attention == "GQA" else [0, 1, 2, 3]
        sides = [
            [np.mean([values[each, norm, "rotary"][seed] for norm in ("rmsnorm", "layernorm")]) for seed in seeds]
            for each in (attention, "MHA")
        ]
        pairs.append((sides[0], sides[1]))
    sides = [
        [
            np.mean([values[attention, norm, "rotary"][seed] for attention in ("MHA", "GQA", "MQA")])
            for seed in (0, 1, 3)
        ]
        for norm in ("layernorm", "rmsnorm")
    ]
    pairs.append((sides[0], sides[1]))
    first, *others = values
    for key in others:
        seeds = [seed for seed in range(4) if values[key][seed] is not None]
        pairs.append(([values[key][seed] for seed in seeds], [values[first][seed] for seed in seeds]))
    assert len(found) == len(pairs) == 3 + 5
    expected = [stats.ttest_rel(a, b) for a, b in pairs]
    for each, (a, b), test in zip(found, pairs, expected, strict=True):
        assert (each.pairs, each.missing) == (len(a), 4 - len(a))
        assert each.mean == pytest.approx(np.mean(np.subtract(a, b)), rel=1e-9)
        assert each.standard_error == pytest.approx(stats.sem(np.subtract(a, b)), rel=1e-9)
        assert each.interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
        assert each.p == pytest.approx(test.pvalue, rel=1e-7)
        unpaired = stats.ttest_ind(a, b).pvalue
        assert each.p != pytest.approx(unpaired, rel=0.1)  # the seeds' own spread is not in it
    p = np.asarray([test.pvalue for test in expected])
    for i, each in enumerate(found):  # Holm, as the maximum over all smaller p-values
        smaller = [min(1, (len(p) - np.sum(p < q)) * q) for q in p if q <= p[i]]
        assert each.p_holm == pytest.approx(max(smaller), rel=1e-6)
        assert (each.verdict != "not claimed") == (max(smaller) < 0.05)
    assert {each.verdict for each in found} == {"worse", "not claimed"}  # else the line above says little


def test_every_cell_of_a_grid_has_scipys_mean_and_error(grid: tuple[RecipeComparison, Values]):
    comparison, values = grid
    for cell in conclude(comparison).cells:
        losses = [loss for loss in values[cell.values].values() if loss is not None]
        assert cell.mean == pytest.approx(np.mean(losses), rel=1e-12)
        assert cell.standard_error == pytest.approx(stats.sem(losses), rel=1e-12)
        assert cell.statuses == {"done": len(losses)} | ({"failed": 1} if len(losses) < 4 else {})


@settings(max_examples=50)
@given(st.permutations(range(5)), st.permutations(range(5)))
def test_pairs_are_found_by_seed_whatever_the_order_of_the_runs(left: list[int], right: list[int]):
    a, b = [1.31, 1.36, 1.30, 1.41, 1.33], [1.30, 1.34, 1.31, 1.38, 1.31]
    axes, seeds = {"attention": ("MHA", "GQA")}, (0, 1, 2, 3, 4)
    values: Values = {("MHA",): {i: b[i] for i in left}, ("GQA",): {i: a[i] for i in right}}
    (found,) = conclude(comparison_of(axes, seeds, values)).differences
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


@pytest.mark.parametrize(("higher", "verdict"), [(False, "worse"), (True, "better")])
def test_which_side_is_better_follows_the_metric(higher: bool, verdict: str):
    comparison = one_axis(MHA=[1.0, 1.1, 1.2], GQA=[1.2, 1.31, 1.39])
    comparison = comparison.model_copy(update={"higher_is_better": higher})
    conclusions = conclude(comparison)
    assert conclusions.differences[0].verdict == verdict
    better = "GQA" if higher else "MHA"
    assert Words(comparison, conclusions).sentence(conclusions.differences[0]).endswith(f": {better} is better.")


def test_a_difference_that_holm_takes_back_is_not_claimed():
    comparison = one_axis(A=[0.0, 0.0, 0.0], B=[0.1, 0.12, 0.09], C=[0.1, 0.15, 0.12], D=[0.05, -0.05, 0.02])
    b, c, d = conclude(comparison).differences
    assert b.p is not None and c.p is not None and c.p_holm is not None
    assert (c.p < 0.05, c.p_holm) == (True, pytest.approx(2 * c.p))
    assert [each.verdict for each in (b, c, d)] == ["worse", "worse", "not claimed"]
    more = one_axis(
        A=[0.0, 0.0, 0.0], C=[0.1, 0.16, 0.12], D=[0.05, -0.05, 0.02], E=[0.02, -0.01, 0.0], F=[0.1, 0.0, 0.01]
    )
    c = conclude(more).differences[0]
    assert c.p is not None and c.p < 0.05
    assert c.verdict == "not claimed"  # four differences now


def test_missing_runs_leave_their_pair_out_and_the_text_says_so():
    comparison = one_axis(MHA=[1.0, None, 1.2, 1.3], GQA=[1.1, 1.2, None, 1.45], MQA=[1.1, 1.0, None, None])
    conclusions = conclude(comparison)
    gqa, mqa = conclusions.differences
    assert (gqa.pairs, gqa.missing, gqa.mean) == (2, 2, pytest.approx(0.125))
    assert (mqa.pairs, mqa.missing, mqa.interval, mqa.verdict) == (1, 3, None, "not tested")
    words = Words(comparison, conclusions)
    assert "2 pairs, 2 left out" in words.sentence(gqa)
    assert "1 pair, 3 left out, too few for an interval): no difference can be claimed." in words.sentence(mqa)
    assert len(words.unfinished()) == 4


def test_a_value_that_is_not_finite_is_a_failed_run():
    runs = [
        RunResult.model_construct(seed=0, status="done", folder="r", value=value)
        for value in (math.nan, math.inf, None)
    ]
    cells = [CellResult.model_construct(values=(name,), runs=(run,)) for name, run in zip("ABC", runs, strict=True)]
    comparison = RecipeComparison(recipe="tiny", axes=(Axis(path="x", values=("A", "B", "C")),), seeds=(0,), cells=())
    comparison = comparison.model_copy(update={"cells": tuple(cells)})
    assert [status_of(cell.runs[0]) for cell in cells] == ["failed"] * 3
    conclusions = conclude(comparison)
    assert [cell.statuses for cell in conclusions.cells] == [{"failed": 1}] * 3
    assert Words(comparison, conclusions).unfinished()[0] == "A, seed 0, failed: diverged"


def test_a_main_effect_leaves_out_choices_that_hardly_ran_but_not_those_that_do_not_fit_alone():
    axes = {"attention": ("MHA", "GQA"), "rotary": ("rotary", "yarn", "linear")}
    losses = {seed: 1.0 + 0.1 * seed for seed in range(3)}
    values: Values = {key: {**losses} for key in product(*axes.values())}
    values["GQA", "rotary"] = {0: 1.1, 1: 1.22, 2: 1.29}
    values["GQA", "yarn"] = {0: 9.0, 1: None, 2: None}  # one pair: left out
    del values["MHA", "linear"]  # does not fit: not a choice at which both can be compared
    effect = conclude(comparison_of(axes, (0, 1, 2), values)).differences[0]
    assert (effect.axis, effect.values, effect.reference) == ("attention", ("GQA",), ("MHA",))
    assert (effect.others, effect.others_left_out, effect.pairs) == (1, 1, 3)
    assert effect.mean == pytest.approx(np.mean([0.1, 0.12, 0.09]))


def test_if_the_first_choice_does_not_fit_the_first_that_does_is_the_reference():
    axes = {"attention": ("MHA", "GQA"), "rotary": ("rotary", "yarn")}
    values: Values = {key: {0: 1.0, 1: 1.2} for key in product(*axes.values())}
    del values["MHA", "rotary"]
    comparison = comparison_of(axes, (0, 1), values)
    conclusions = conclude(comparison)
    assert {each.reference for each in conclusions.differences if each.axis is None} == {("MHA", "yarn")}
    note = Words(comparison, conclusions).notes()[0]
    assert note == "MHA · rotary does not fit, so cells are compared with MHA · yarn."


def test_one_axis_that_varies_has_no_main_effect_beside_its_cells():
    axes = {"attention": ("MHA", "GQA"), "norm": ("rmsnorm",)}
    values: Values = {key: {0: 1.0, 1: 1.2} for key in product(*axes.values())}
    assert [each.axis for each in conclude(comparison_of(axes, (0, 1), values)).differences] == [None]


@pytest.mark.parametrize("n", [3, 5])
def test_of_comparisons_without_a_difference_one_in_twenty_claims_one(n: int):
    rng, comparisons = np.random.default_rng(n), 2000
    claims = {"two values": 0, "three values": 0, "three values, not corrected": 0}
    for _ in range(comparisons):
        seeds = rng.normal(0, 0.05, n)  # what a seed adds to all its runs
        a, b, c = (1.5 + seeds + rng.normal(0, 0.01, (3, n))).tolist()
        claims["two values"] += conclude(one_axis(A=a, B=b)).differences[0].verdict in ("better", "worse")
        three = conclude(one_axis(A=a, B=b, C=c)).differences
        claims["three values"] += any(each.verdict in ("better", "worse") for each in three)
        claims["three values, not corrected"] += any(each.p is not None and each.p < 0.05 for each in three)
    share = {name: count / comparisons for name, count in claims.items()}
    assert 0.03 <= share["two values"] <= 0.07
    assert 0.03 <= share["three values"] <= 0.07
    assert share["three values, not corrected"] > 0.07
