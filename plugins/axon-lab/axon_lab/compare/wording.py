"""Numbers and sentences of a comparison, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median

from axon_core import printable
from axon_lab.compare.conclusions import Conclusions, Difference, status_of
from axon_lab.compare.results import RecipeComparison

__all__ = ["Words", "as_html", "bytes_words", "count_words", "floating_words", "p_words", "plural"]

MINUS = "−"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def as_html(text: str) -> str:
    r"""Return text of a recipe, a path or an error as HTML that shows it as it is, on one line.

    >>> as_html("<b>\x1b")
    '&lt;b&gt;\\x1b'
    """
    return escape(printable(text, line=True))


def plural(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "pair"), plural(3, "pair")
    ('1 pair', '3 pairs')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def p_words(p: float) -> str:
    """Return a p-value with so many digits that it stands on the right side of 0.05.

    >>> p_words(0.2512), p_words(0.04996), p_words(1e-5)
    ('p = 0.251', 'p = 0.04996', 'p < 0.001')
    """
    if p < 0.001:
        return "p < 0.001"
    if p > 0.9995:
        return "p = 1"
    return f"p = {p:.5f}" if 0.0495 <= p < 0.0505 else f"p = {p:.3f}"


def floating_words(value: float) -> str:
    """Return a large number with three digits and a power of ten.

    >>> floating_words(1.2345e15), floating_words(950)
    ('1.23 × 10¹⁵', '950')
    """
    if value < 1000:
        return f"{value:.3g}"
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"


def bytes_words(value: float) -> str:
    """Return bytes in the largest unit that leaves at least one.

    >>> bytes_words(512), bytes_words(3 * 2**20), bytes_words(1.5 * 2**30)
    ('512 B', '3 MiB', '1.5 GiB')
    """
    power = min(4, int(math.log2(value) // 10)) if value >= 1 else 0
    return f"{value / 1024**power:,.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def count_words(value: float) -> str:
    """Return a rate or a number of things: three digits at least, whole from there on.

    >>> count_words(12345.6), count_words(4.5678)
    ('12,346', '4.57')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Words:
    """Says what a comparison measured and what follows from it; figures have as many decimals as their errors allow.

    Args:
        comparison: the design and the results.
        conclusions: what `conclude` computes from them.
    """

    def __init__(self, comparison: RecipeComparison, conclusions: Conclusions) -> None:
        self.comparison, self.conclusions = comparison, conclusions
        families = (conclusions.cells, conclusions.differences)
        errors = [[each.standard_error for each in family if each.standard_error] for family in families]
        means = [abs(cell.mean) for cell in conclusions.cells if cell.mean]
        scale = min((median(found) for found in errors if found), default=median(means) / 1000 if means else 1e-3)
        self._decimals = max(0, min(8, 1 - math.floor(math.log10(scale))))

    def number(self, value: float) -> str:
        """Return a value of the metric."""
        return f"{value:.{self._decimals}f}".replace("-", MINUS)

    def signed(self, value: float) -> str:
        """Return a difference of the metric, with its sign; zero has none."""
        text = f"{value:+.{self._decimals}f}"
        return (text if float(text) else text[1:]).replace("-", MINUS)

    def with_error(self, mean: float, error: float | None, *, signed: bool = False) -> str:
        """Return a mean ± its standard error."""
        text = self.signed(mean) if signed else self.number(mean)
        if error is None:
            return text
        least = 10.0**-self._decimals
        return f"{text} ± {'under ' if 0 < error < least / 2 else ''}{self.number(max(error, least if error else 0))}"

    def name(self, difference: Difference) -> str:
        """Return the name of a difference, `GQA − MHA`; names of several values stand in brackets."""
        names = [self.comparison.name(values) for values in (difference.values, difference.reference)]
        several = len(difference.values) > 1
        return f" {MINUS} ".join(f"({name})" if several else name for name in names)

    def interval(self, difference: Difference) -> str:
        """Return a difference's interval, or why there is none."""
        if difference.interval is None:
            return "none"
        low, high = map(self.signed, difference.interval)
        return f"{low} to {high}"

    def pairs(self, difference: Difference) -> str:
        """Return how many pairs a difference rests on, and how many were left out."""
        left_out = f", {difference.missing} left out" if difference.missing else ""
        return plural(difference.pairs, "pair") + left_out

    def sentence(self, difference: Difference) -> str:
        """Return what a difference says, in one sentence."""
        return f"{self.name(difference)}: {self.evidence(difference)}: {self.verdict(difference)}."

    def evidence(self, difference: Difference) -> str:
        """Return the figures of a difference, or what is missing."""
        if difference.mean is None:
            return f"no pair of finished runs ({self.pairs(difference)})"
        figure = f"{self.with_error(difference.mean, difference.standard_error, signed=True)} {self.comparison.unit}"
        if difference.pairs < 2:
            return f"{figure} ({self.pairs(difference)}, too few for an interval)"
        if difference.interval is None or difference.p_holm is None:
            same = f"{self.signed(difference.mean)} {self.comparison.unit}"
            return f"{same} in each pair ({self.pairs(difference)}; equal differences give no interval)"
        interval = f"95 % interval {self.interval(difference)}"
        return f"{figure} ({interval}, {p_words(difference.p_holm)} after Holm, {self.pairs(difference)})"

    def verdict(self, difference: Difference) -> str:
        """Return what can be claimed."""
        match difference.verdict:
            case "better":
                return f"{self.comparison.name(difference.values)} is better"
            case "worse":
                return f"{self.comparison.name(difference.reference)} is better"
            case _:
                return "no difference can be claimed"

    def groups(self) -> list[tuple[str, list[Difference]]]:
        """Return the differences by what they compare: each axis with its title, then the cells."""
        found: list[tuple[str, list[Difference]]] = []
        for axis in self.comparison.axes:
            effects = [each for each in self.conclusions.differences if each.axis == axis.path]
            if effects:
                found.append((f"{axis.path}, averaged over the other axes", effects))
        cells = [each for each in self.conclusions.differences if each.axis is None]
        if cells:
            title = f"Each cell minus {self.comparison.name(cells[0].reference)}" if found else ""
            found.append((title, cells))
        return found

    def headline(self) -> str:
        """Return how many differences can be claimed."""
        differences = self.conclusions.differences
        if not differences:
            return "There is nothing to compare: fewer than two cells fit the recipe."
        claimed = sum(each.verdict in ("better", "worse") for each in differences)
        if len(differences) == 1:
            answer = "A difference can be claimed." if claimed else "No difference can be claimed."
        else:
            answer = f"{claimed or 'None'} of {len(differences)} differences can be claimed."
        waiting = any("waiting" in cell.statuses for cell in self.conclusions.cells)
        return f"So far: {answer[0].lower()}{answer[1:]}" if waiting else answer

    def measured(self) -> str:
        """Return what is measured, how often and with what budget."""
        better = "higher" if self.comparison.higher_is_better else "lower"
        seeds = ", ".join(map(str, self.comparison.seeds))
        budget = self.comparison.budget
        each = f"{budget.amount:,g} {budget.unit} for each run" if budget else "the recipe's own number of steps"
        unit = f" in {self.comparison.unit}" if self.comparison.unit else ""
        return (
            f"{self.comparison.recipe}: {self.comparison.metric}{unit} on the held-out part, {better} is better; "
            f"{plural(len(self.comparison.seeds), 'seed')} ({seeds}), {each}. ± is the standard error over seeds."
        )

    def notes(self) -> list[str]:
        """Return what a reader must know of the reference and of averages over an incomplete grid."""
        notes: list[str] = []
        first = tuple(axis.values[0] for axis in self.comparison.axes)
        cells = self.comparison.cells
        if cells and cells[0].values != first:
            name = self.comparison.name
            notes.append(f"{name(first)} does not fit, so cells are compared with {name(cells[0].values)}.")
        incomplete = [each for each in self.conclusions.differences if each.others and each.others_left_out]
        for number in sorted({each.others_left_out for each in incomplete}):
            found = [self.name(each) for each in incomplete if each.others_left_out == number]
            where = plural(number, "choice") + " for the other axes, where more than half of the pairs are missing"
            notes.append(f"{', '.join(found)} {'leaves' if len(found) == 1 else 'leave'} out {where}.")
        differences = self.conclusions.differences
        unclaimed = [each.interval for each in differences if each.verdict == "not claimed" and each.interval]
        if any(low * high > 0 for low, high in unclaimed):
            notes.append(
                "An interval is for one difference alone, but a claim must hold among all "
                f"{len(differences)}: an interval without zero need not be one."
            )
        if len(self.comparison.seeds) < 3 and differences:
            notes.append("With fewer than 3 seeds hardly any difference can be claimed; more seeds find smaller ones.")
        return notes

    def unfinished(self) -> list[str]:
        """Return one sentence for each run that failed or was killed, and one for those still to be made."""
        lines: list[str] = []
        waiting = 0
        for cell in self.comparison.cells:
            for run in cell.runs:
                status = status_of(run)
                waiting += status == "waiting"
                if status in ("failed", "killed"):
                    why = run.reason or ("diverged" if run.status == "done" else "no reason is known")
                    verb = "failed" if status == "failed" else "was killed"
                    lines.append(f"{self.comparison.name(cell.values)}, seed {run.seed}, {verb}: {why}")
        return lines + ([f"{plural(waiting, 'run')} still to be made."] if waiting else [])

    def left_out(self) -> list[str]:
        """Return which choices do not fit the recipe, those of one reason together."""
        by_reason: dict[str, list[Sequence[str]]] = {}
        for each in self.comparison.left_out:
            by_reason.setdefault(each.reason, []).append(each.values)
        return [f"{self._names(group)}: {reason}" for reason, group in by_reason.items()]

    def _names(self, group: Iterable[Sequence[str]]) -> str:
        return ", ".join(map(self.comparison.name, group))
