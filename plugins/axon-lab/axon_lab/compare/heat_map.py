"""The grid of a comparison as a table whose colours show the means, with the numbers written in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import median

from axon_lab.compare.conclusions import CellSummary
from axon_lab.compare.results import Axis, CellResult, LeftOut
from axon_lab.compare.wording import Words, as_html

__all__ = ["heat_maps", "ramp_color"]

_RAMP = ((0xF0, 0xF4, 0xF9), (0xB3, 0xCD, 0xE6), (0x5E, 0x9C, 0xCC), (0x1F, 0x67, 0xA8), (0x08, 0x37, 0x6F))
"""From worse to better: one hue that darkens, so that it reads in grey and to any eye."""


def ramp_color(part: float) -> tuple[str, str]:
    """Return the colour of a place on the ramp, 0 the worst and 1 the best, and that of text on it.

    >>> ramp_color(0.0), ramp_color(1.0)
    (('#f0f4f9', '#000'), ('#08376f', '#fff'))
    """
    place = min(max(part, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(place), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (place - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)]
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 for c in mixed)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # WCAG 2: black and white contrast equally at 0.179
    return f"#{''.join(f'{c:02x}' for c in mixed)}", "#000" if luminance > 0.179 else "#fff"


def heat_maps(words: Words) -> str:
    """Return a table for the two first axes that vary, one for each choice of the others; nothing for fewer axes."""
    comparison = words.comparison
    places = [i for i, axis in enumerate(comparison.axes) if len(axis.values) > 1][:2]
    if len(places) < 2:
        return ""
    best, worst = _scale(words)
    others = [axis.values if i not in places else ("",) for i, axis in enumerate(comparison.axes)]
    parts: list[str] = []
    for other in product(*others):
        named = [f"{comparison.axes[i].path} = {value}" for i, value in enumerate(other) if i not in places]
        parts += [f"<h3>{as_html(', '.join(named))}</h3>"] if len(comparison.axes) > 2 else []
        parts.append(_table(words, places, other, (best, worst)))
    return _legend(words, best, worst) + "".join(parts)


def _scale(words: Words) -> tuple[float, float]:
    """Return the best mean and the worst that has a colour of its own: one far off shares it with the end."""
    sign = 1 if words.comparison.higher_is_better else -1
    scores = sorted((sign * cell.mean for cell in words.conclusions.cells if cell.mean is not None), reverse=True)
    if not scores:
        return 0.0, 0.0
    worst = max(scores[-1], scores[0] - 3 * (scores[0] - median(scores))) if len(scores) > 2 else scores[-1]
    return sign * scores[0], sign * worst


def _table(words: Words, places: Sequence[int], other: Sequence[str], scale: tuple[float, float]) -> str:
    rows, columns = (words.comparison.axes[i] for i in places)
    results = {cell.values: cell for cell in words.comparison.cells}
    summaries = {cell.values: cell for cell in words.conclusions.cells}
    left_out = {each.values: each for each in words.comparison.left_out}
    head = "".join(f"<th>{as_html(value)}</th>" for value in columns.values)
    lines = [f'<thead><tr><th class="name">{_corner(rows, columns)}</th>{head}</tr></thead>']
    for row in rows.values:
        cells: list[str] = []
        for column in columns.values:
            values = list(other)
            values[places[0]], values[places[1]] = row, column
            key = tuple(values)
            cells.append(_cell(words, results.get(key), summaries.get(key), left_out.get(key), scale))
        lines.append(f'<tr><th class="name">{as_html(row)}</th>{"".join(cells)}</tr>')
    return f'<div class="box"><table class="heat">{"".join(lines)}</table></div>'


def _corner(rows: Axis, columns: Axis) -> str:
    return f"{as_html(rows.path)} ↓<br>{as_html(columns.path)} →"


def _cell(
    words: Words,
    result: CellResult | None,
    summary: CellSummary | None,
    left_out: LeftOut | None,
    scale: tuple[float, float],
) -> str:
    """Return one cell: its mean in colour, or why there is none."""
    if result is None or summary is None:
        reason = left_out.reason if left_out else "not in this comparison"
        return f'<td class="none">left out<small class="reason">{as_html(reason)}</small></td>'
    missing = ", ".join(f"{n} {status}" for status, n in summary.statuses.items() if status != "done")
    if summary.mean is None:
        reason = next((run.reason for run in result.runs if run.reason), "")
        kind = "failed" if {"failed", "killed"} & summary.statuses.keys() else "none"
        return f'<td class="{kind}">{as_html(missing or "no runs")}<small class="reason">{as_html(reason)}</small></td>'
    best, worst = scale
    background, ink = ramp_color((summary.mean - worst) / (best - worst) if best != worst else 1.0)
    error = "" if summary.standard_error is None else f"<small>± {words.number(summary.standard_error)}</small>"
    note = f"<small>{as_html(missing)}</small>" if missing else ""
    style = f"background:{background};color:{ink}"
    return f'<td style="{style}"><b>{words.number(summary.mean)}</b>{error}{note}</td>'


def _legend(words: Words, best: float, worst: float) -> str:
    ramp = ", ".join(ramp_color(i / 4)[0] for i in range(5))
    means = [cell.mean for cell in words.conclusions.cells if cell.mean is not None]
    more = " and worse" if any((mean - worst) * (worst - best) > 0 for mean in means) else ""
    bar = f'<span class="ramp" style="background:linear-gradient(to right, {ramp})"></span>'
    metric = f"{as_html(words.comparison.metric)}, {as_html(words.comparison.unit)}"
    text = f"{metric}: {words.number(worst)}{more} {bar} {words.number(best)} (best)"
    return f'<p class="soft">{text}. A difference in colour is not a claim; the claims are above.</p>'
