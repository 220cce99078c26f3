"""SVG of a comparison: curves over the training, and intervals on a common scale; pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from axon_lab.compare.wording import as_html

__all__ = ["DifferenceScale", "Line", "axis_svg", "curves_svg", "interval_span", "interval_svg", "swatch_svg", "ticks"]

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 44
_COLORS, _DASHES = 7, ("", "7 3", "2 3", "9 3 2 3")
_ROW = 26
_EARLY = 0.4  # the part of the training whose steep beginning does not set the scale

Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """One cell's curves in a plot."""

    name: str
    """What the legend calls it."""
    style: int
    """Which colour and dash it has."""
    runs: tuple[Points, ...]
    """The curve of each seed: thin."""
    mean: Points
    """The mean over seeds: thick; empty if there is none."""


class DifferenceScale(NamedTuple):
    """A scale of differences, and how wide it is drawn."""

    low: float
    """Its left end."""
    high: float
    """Its right end."""
    width: int = 340
    """Pixels."""

    def place(self, value: float) -> float:
        """Return the pixel of a value; beyond the scale, of its end."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return 10 + part * (self.width - 20)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 1), ticks(1.13, 1.31)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1.15, 1.2, 1.25, 1.3])
    """
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _tick_words(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _style(style: int) -> str:
    dash = _DASHES[style // _COLORS % len(_DASHES)]
    return f'class="c{style % _COLORS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def swatch_svg(style: int) -> str:
    """Return a short piece of a line, for a legend."""
    line = f'<line x1="1" y1="6" x2="31" y2="6" stroke-width="2.5" {_style(style)}/>'
    return f'<svg class="swatch" width="32" height="12" aria-hidden="true">{line}</svg>'


def mean_curve(runs: Sequence[Points]) -> Points:
    """Return the mean of curves where all are known, at all their points; between its points a curve is straight."""
    if not runs or not all(runs):
        return []
    first, last = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
    grid = sorted({x for run in runs for x, _ in run if first <= x <= last})
    values = [np.interp(grid, [x for x, _ in run], [y for _, y in run]) for run in runs]
    return list(zip(grid, np.mean(values, axis=0).tolist(), strict=True)) if grid else []


def value_range(lines: Iterable[Line], last: float) -> tuple[float, float] | None:
    """Return the range of values that a plot shows; the steep beginning of the curves may lie above it."""
    points = [point for line in lines for run in line.runs for point in run]
    if not points:
        return None
    late = [y for x, y in points if x >= _EARLY * last] or [y for _, y in points]
    low, high = min(late), max(late)
    high = min(high, low + 12 * (median(late) - low)) if median(late) > low else high  # one that diverges
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.1
    return low - margin, high + margin


def curves_svg(lines: Sequence[Line], x_title: str, y_title: str, last: float, shown: tuple[float, float]) -> str:
    """Return a plot of curves: from 0 to `last` across, and the values `shown` upwards."""
    low, high = shown
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def x_of(x: float) -> float:
        return _LEFT + across * x / last

    def y_of(y: float) -> float:
        return _TOP + down * (high - max(min(y, high + (high - low)), low - (high - low))) / (high - low)

    parts = [f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{across}" height="{down}"/>']
    for x in ticks(0, last):
        at = f"{x_of(x):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_TOP + down}"/>')
        parts.append(f'<text x="{at}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_tick_words(x)}</text>')
    for y in ticks(low, high):
        at = y_of(y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_tick_words(y)}</text>')
    parts.append(f'<text x="{_LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle">{as_html(x_title)}</text>')
    turned = f'transform="translate(13 {_TOP + down / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{as_html(y_title)}</text>')
    drawn: list[str] = []
    for line in lines:
        for points, kind in (*((run, "thin") for run in line.runs), (line.mean, "thick")):
            path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
            drawn.append(f'<g class="{kind}"><polyline points="{path}" {_style(line.style)}/></g>' if path else "")
    inside = f'<svg x="{_LEFT}" y="{_TOP}" width="{across}" height="{down}" viewBox="{_LEFT} {_TOP} {across} {down}">'
    label = as_html(f"{y_title} over {x_title}: {', '.join(line.name for line in lines)}")
    box = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return f"{box}{''.join(parts)}{inside}{''.join(drawn)}</svg></svg>"


def interval_span(intervals: Sequence[tuple[float, float, float]]) -> DifferenceScale:
    """Return a scale, with zero, for intervals (low, mean, high): what is far off or very wide is cut off."""
    if not intervals:
        return DifferenceScale(-1.0, 1.0)
    wide = [high - low for low, _, high in intervals if high > low] or [0.0]
    most = max(2 * median(wide), 8 * median([abs(mean) for _, mean, _ in intervals]))
    low = max(min(0.0, *(low for low, _, _ in intervals)), -most)
    high = min(max(0.0, *(high for _, _, high in intervals)), most)
    margin = 0.04 * (high - low) or 1e-6
    return DifferenceScale(low - margin, high + margin)


def interval_svg(span: DifferenceScale, mean: float, interval: tuple[float, float] | None, claimed: bool) -> str:
    """Return one row of a forest plot: the mean and its interval, and a line at zero; arrows where it is cut off."""
    middle, zero = _ROW / 2, f"{span.place(0):.1f}"
    parts = [f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="{_ROW}"/>']
    if interval and span.low <= mean <= span.high:
        low, high = map(span.place, interval)
        parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}"/>')
        for value, x in zip(interval, (low, high), strict=True):
            back = 6 if value < span.low else -6 if value > span.high else 0
            parts.append(
                f'<path class="whisker" d="M{x + back:.1f} {middle - 5}L{x:.1f} {middle}L{x + back:.1f} {middle + 5}"/>'
            )
    kind, x = "claimed" if claimed else "open", span.place(mean)
    if span.low <= mean <= span.high:
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{middle}" r="4.5"/>')
    else:
        tip = 7 if mean > span.high else -7
        back = f"{x - tip / 2:.1f}"
        shape = f"M{back} {middle - 6}L{x + tip:.1f} {middle}L{back} {middle + 6}Z"
        parts.append(f'<path class="{kind}" d="{shape}"/>')
    return f'<svg class="row" width="{span.width}" height="{_ROW}" aria-hidden="true">{"".join(parts)}</svg>'


def axis_svg(span: DifferenceScale, left: str, right: str) -> str:
    """Return the scale of a forest plot: ticks, and in words what lies on its `left` and on its `right`."""
    parts: list[str] = []
    for value in ticks(span.low, span.high, 5):
        x = span.place(value)
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="31" y2="36"/>')
        parts.append(f'<text x="{x:.1f}" y="28" text-anchor="middle">{_tick_words(value)}</text>')
    parts.append(f'<text x="0" y="12">← {as_html(left)}</text>')
    parts.append(f'<text x="{span.width}" y="12" text-anchor="end">{as_html(right)} →</text>')
    parts.append(f'<line class="tick" x1="0" x2="{span.width}" y1="35.5" y2="35.5"/>')
    return f'<svg class="row" width="{span.width}" height="36" role="img" aria-label="scale">{"".join(parts)}</svg>'
