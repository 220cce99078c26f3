"""A comparison as a table, one row for each cell, and as CSV, one row for each run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from axon_core import printable
from axon_lab.compare.conclusions import CellSummary, status_of
from axon_lab.compare.results import CellResult
from axon_lab.compare.wording import Words, bytes_words, count_words, floating_words

__all__ = ["aligned", "comparison_table", "to_csv"]

_RUN = ("seed", "status", "reason", "value", "steps", "seconds", "tokens_per_s", "memory_bytes", "decode_tokens_per_s")
_CELL = ("parameters", "flops", "cache_bytes_per_token")


def comparison_table(words: Words) -> tuple[list[str], list[list[str]]]:
    """Return the columns' titles and the rows of all cells, then of what was left out; a column of nothing is not."""
    comparison, conclusions = words.comparison, words.conclusions
    differences = {each.values: each for each in conclusions.differences if each.axis is None}
    unit = f", {comparison.unit}" if comparison.unit else ""
    titles = [
        *(axis.path for axis in comparison.axes),
        f"{comparison.metric}{unit}",
        "runs",
        "difference to the first",
        "parameters",
        "FLOPs",
        f"{comparison.counted}/s",
        "memory",
        "decode tokens/s",
        "cache bytes/token",
    ]
    rows: list[list[str]] = []
    for cell, summary in zip(comparison.cells, conclusions.cells, strict=True):
        difference = differences.get(cell.values)
        gap = "–"
        if difference and difference.mean is not None:
            gap = words.with_error(difference.mean, difference.standard_error, signed=True)
        mean = "–" if summary.mean is None else words.with_error(summary.mean, summary.standard_error)
        rows.append([*cell.values, mean, _statuses(summary), gap, *_costs(cell, summary)])
    empty = ["–"] * (len(titles) - len(comparison.axes) - 2)
    rows += [[*each.values, "–", "left out", *empty] for each in comparison.left_out]
    kept = [i for i in range(len(titles)) if i <= len(comparison.axes) or any(row[i] != "–" for row in rows)]
    return [titles[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _costs(cell: CellResult, summary: CellSummary) -> list[str]:
    """Return what a cell costs: parameters, operations, and what its runs measured."""
    return [
        "–" if value is None else words(value)
        for value, words in (
            (cell.parameters, lambda value: f"{value:,}"),
            (cell.flops, floating_words),
            (summary.tokens_per_s, count_words),
            (summary.memory_bytes, bytes_words),
            (summary.decode_tokens_per_s, count_words),
            (cell.cache_bytes_per_token, lambda value: f"{value:,.6g}"),
        )
    ]


def _statuses(summary: CellSummary) -> str:
    return ", ".join(f"{number} {status}" for status, number in summary.statuses.items()) or "none"


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text; what would control a terminal is escaped.

    >>> print(aligned(["a", "bc"], [["def", "g"]]))
    a    bc
    def  g
    """
    lines = [[printable(cell, line=True) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def to_csv(words: Words) -> str:
    """Return CSV with one row for each run and plain numbers; a spreadsheet takes no text of it for a formula."""
    comparison, file = words.comparison, io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(_text(axis.path) for axis in comparison.axes), *_RUN, *_CELL, "folder"])
    for cell in comparison.cells:
        for run in cell.runs:
            found = run.model_dump() | {"status": status_of(run), "reason": _text(run.reason)}
            costs = [getattr(cell, name) for name in _CELL]
            row = [*map(_text, cell.values), *(found[name] for name in _RUN), *costs, _text(run.folder)]
            writer.writerow(["" if value is None else value for value in row])
    return file.getvalue()


def _text(text: str) -> str:
    """Return text with an apostrophe before it if a spreadsheet would run it; numbers stay."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
    return text
