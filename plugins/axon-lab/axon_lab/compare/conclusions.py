"""What can be concluded from a comparison: means of its cells, and paired differences, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt

from axon_core import Config
from axon_lab.compare.results import CellResult, RecipeComparison, RunResult, RunStatus
from axon_lab.compare.statistics import LEVEL, holm, mean_over_seeds, paired_difference

__all__ = ["CellSummary", "Conclusions", "Difference", "Judgement", "conclude", "status_of"]

Judgement = Literal["better", "worse", "not claimed", "not tested"]


class CellSummary(Config):
    """A cell over its seeds; figures are of its finished runs, None without one."""

    values: tuple[str, ...]
    """A value for each axis."""
    statuses: dict[RunStatus, int]
    """How many runs have each status; a run without a finite value counts as failed."""
    mean: float | None = None
    """The metric's mean."""
    standard_error: NonNegativeFloat | None = None
    """Its standard error; None with fewer than two runs."""
    tokens_per_s: NonNegativeFloat | None = None
    """Units trained on a second, mean."""
    memory_bytes: NonNegativeInt | None = None
    """Memory, largest."""
    decode_tokens_per_s: NonNegativeFloat | None = None
    """Tokens generated a second, mean."""


class Difference(Config):
    """A cell or a value of an axis, minus what it is compared with."""

    axis: str | None = None
    """The field whose values are compared, averaged over the other axes; None: two cells."""
    values: tuple[str, ...]
    """What is compared: the values of a cell, or one value."""
    reference: tuple[str, ...]
    """What it is compared with."""
    others: NonNegativeInt = 1
    """Over how many choices for the other axes it is averaged; 1 for cells."""
    others_left_out: NonNegativeInt = 0
    """How many other choices are left out, since a run of either value is missing."""
    pairs: NonNegativeInt
    """Seeds that both have."""
    missing: NonNegativeInt
    """Seeds that are left out, since either lacks a finished run."""
    mean: float | None = None
    """The mean difference; None without a pair."""
    standard_error: NonNegativeFloat | None = None
    """Its standard error; None with fewer than two pairs."""
    interval: tuple[float, float] | None = None
    """The interval of 95 %; None with fewer than two pairs, or if all differences are equal."""
    method: Literal["t", "bootstrap"] | None = None
    """Where the interval comes from: Student's t, or the BCa bootstrap from 10 pairs."""
    p: NonNegativeFloat | None = None
    """The p-value of the paired t test, not corrected."""
    p_holm: NonNegativeFloat | None = None
    """The same after Holm's correction over all differences of the comparison; below 0.05 the difference is claimed."""
    verdict: Judgement = "not tested"
    """Whether what is compared is better or worse than the reference."""


class Conclusions(Config):
    """Everything that is computed from the results of a comparison."""

    cells: tuple[CellSummary, ...]
    """In the order of the comparison's cells."""
    differences: tuple[Difference, ...]
    """First those of the axes, if two or more vary; then each cell minus the first cell that fits."""


def status_of(run: RunResult) -> RunStatus:
    """Return what became of a run; one that is done without a finite value failed."""
    return "failed" if run.status == "done" and (run.value is None or not math.isfinite(run.value)) else run.status


def conclude(comparison: RecipeComparison) -> Conclusions:
    """Return what the results of a comparison say.

    All differences are one family for Holm's correction. A difference without a p-value is not in it.
    """
    found = [*_axis_differences(comparison), *_cell_differences(comparison)]
    corrected = iter(holm([each.p for each in found if each.p is not None]))
    judged = [each if each.p is None else _judged(each, next(corrected), comparison) for each in found]
    return Conclusions(cells=tuple(map(_summary, comparison.cells)), differences=tuple(judged))


def _judged(difference: Difference, p_holm: float, comparison: RecipeComparison) -> Difference:
    """Return the difference with its corrected p-value, and the verdict that follows."""
    verdict: Judgement = "not claimed"
    if p_holm < LEVEL:
        verdict = "better" if ((difference.mean or 0.0) > 0) == comparison.higher_is_better else "worse"
    return difference.model_copy(update={"p_holm": p_holm, "verdict": verdict})


def _finished(cell: CellResult) -> dict[int, float]:
    """Return the value of each seed whose run is done."""
    return {run.seed: run.value for run in cell.runs if run.value is not None and status_of(run) == "done"}


def _summary(cell: CellResult) -> CellSummary:
    done = [run for run in cell.runs if status_of(run) == "done"]
    statuses: dict[RunStatus, int] = {}
    for run in cell.runs:
        statuses[status_of(run)] = statuses.get(status_of(run), 0) + 1
    found = mean_over_seeds([*_finished(cell).values()]) if done else None
    return CellSummary(
        values=cell.values,
        statuses=statuses,
        mean=found.mean if found else None,
        standard_error=found.standard_error if found else None,
        tokens_per_s=_mean([run.tokens_per_s for run in done]),
        memory_bytes=max((run.memory_bytes for run in done if run.memory_bytes is not None), default=None),
        decode_tokens_per_s=_mean([run.decode_tokens_per_s for run in done]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _figures(values: Mapping[int, float], reference: Mapping[int, float], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a `Difference` that follow from the values of the seeds that both have."""
    shared = [seed for seed in seeds if seed in values and seed in reference]
    counts = {"pairs": len(shared), "missing": len(seeds) - len(shared)}
    if not shared:
        return counts
    found = paired_difference([values[seed] for seed in shared], [reference[seed] for seed in shared])
    return found._asdict() | counts


def _cell_differences(comparison: RecipeComparison) -> Iterator[Difference]:
    """Yield each cell minus the first one that fits; which cells fit is known before any run."""
    for cell in comparison.cells[1:]:
        first = comparison.cells[0]
        figures = _figures(_finished(cell), _finished(first), comparison.seeds)
        yield Difference(values=cell.values, reference=first.values, **figures)


def _axis_differences(comparison: RecipeComparison) -> Iterator[Difference]:
    """Yield, for each axis of a grid, each value minus the first one that fits, averaged over the other axes."""
    if sum(len(axis.values) > 1 for axis in comparison.axes) < 2:
        return  # these would be the differences of the cells again
    cells = {cell.values: _finished(cell) for cell in comparison.cells}
    for place, axis in enumerate(comparison.axes):
        fitting = [value for value in axis.values if any(values[place] == value for values in cells)]
        for value in fitting[1:]:
            yield _axis_difference(comparison, cells, place, value, fitting[0])


def _axis_difference(
    comparison: RecipeComparison,
    cells: Mapping[tuple[str, ...], Mapping[int, float]],
    place: int,
    value: str,
    first: str,
) -> Difference:
    """Return the main effect of a value of an axis: for each seed, the mean of its differences over the other axes.

    D_s = Σ_o (y_{value,o,s} − y_{first,o,s}) / |O|, and the pairs of the test are the seeds s: runs with the same seed
    share initial values and data, so the cells of a seed are not independent, and to count each as a pair would make
    the interval too narrow. O holds the choices o for the other axes at which both values fit and at least half of the
    seeds, and two, are there for both; a seed counts if it is there in all of O. So each D_s averages over the same O.
    """
    seeds = comparison.seeds
    others = [axis.values if i != place else (first,) for i, axis in enumerate(comparison.axes)]
    columns = [(cells.get((*o[:place], value, *o[place + 1 :])), cells.get(o)) for o in product(*others)]
    fitting = [(a, b) for a, b in columns if a is not None and b is not None]
    enough = min(len(seeds), max(2, len(seeds) / 2))
    taken = [(a, b) for a, b in fitting if len(a.keys() & b.keys()) >= enough]
    whole = [seed for seed in seeds if taken and all(seed in a and seed in b for a, b in taken)]
    means = [{seed: float(np.mean([column[side][seed] for column in taken])) for seed in whole} for side in (0, 1)]
    return Difference(
        axis=comparison.axes[place].path,
        values=(value,),
        reference=(first,),
        others=len(taken),
        others_left_out=len(fitting) - len(taken),
        **_figures(means[0], means[1], seeds),
    )
