"""The drawings of a comparison stand where the numbers say."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_lab.compare.drawing import (
    DifferenceScale,
    Line,
    curves_svg,
    interval_span,
    interval_svg,
    mean_curve,
    ticks,
    value_range,
)
from axon_lab.compare.heat_map import ramp_color


def relative_luminance(color: str) -> float:
    """WCAG 2.2's relative luminance of `#rgb` or `#rrggbb`."""
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e4))
def test_ticks_are_few_even_and_within_the_range(low: float, width: float):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 6
    assert len({f"{b - a:.3e}" for a, b in pairwise(found)}) == 1
    assert all(low - 1e-6 * width <= value <= low + (1 + 1e-6) * width for value in found)


@given(st.floats(0, 1))
def test_numbers_on_the_heat_map_are_readable_and_better_is_darker(part: float):
    background, ink = ramp_color(part)
    light, dark = sorted([relative_luminance(background), relative_luminance(ink)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert relative_luminance(ramp_color(min(1, part + 0.1))[0]) <= relative_luminance(background) + 1e-3


def test_a_mean_curve_covers_what_all_runs_cover():
    runs = [[(0.0, 4.0), (10.0, 2.0), (20.0, 1.0)], [(5.0, 3.0), (15.0, 2.0)]]
    assert mean_curve(runs) == [(5.0, 3.0), (10.0, 2.25), (15.0, 1.75)]
    assert mean_curve([]) == mean_curve([[(0.0, 1.0)], []]) == []


def test_the_steep_beginning_and_a_run_that_diverges_do_not_set_the_scale():
    curve = [(float(step), 1.3 + 3 * 0.9**step) for step in range(101)]
    shown = value_range([Line("a", 0, (curve,), curve)], 100.0)
    assert shown is not None and shown[0] < 1.3 + 3 * 0.9**100 and shown[1] < 1.5
    diverged = [(step, value + 1e6 * (step > 90)) for step, value in curve]
    wider = value_range([Line("a", 0, (curve, curve, diverged), curve)], 100.0)
    assert wider is not None and wider[1] < 2
    assert value_range([], 1.0) is None
    flat = value_range([Line("a", 0, ([(0.0, 2.0)],), [])], 1.0)
    assert flat is not None and flat[0] < 2 < flat[1]


def test_a_curve_is_drawn_where_its_values_lie():
    line = Line("GQA", 8, ([(0.0, 1.0), (10.0, 3.0)],), [])
    drawn = curves_svg([line], "step", "loss, nats", 10.0, (1.0, 3.0))
    points = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', drawn)
    frame = re.search(r'class="frame" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', drawn)
    assert points and frame
    x, y, width, height = map(float, frame.groups())
    assert [*map(float, points.groups())] == [x, y + height, x + width, y]
    assert 'class="c1" stroke-dasharray' in drawn  # the eighth colour is the second, dashed
    assert ">step<" in drawn and ">loss, nats<" in drawn


def test_an_interval_is_drawn_to_scale_with_zero_in_view():
    span = interval_span([(0.01, 0.02, 0.03), (0.015, 0.02, 0.025)])
    assert span.low < 0 < 0.03 < span.high
    drawn = interval_svg(span, 0.02, (0.01, 0.03), True)
    centre = float(re.search(r'class="claimed" cx="([\d.]+)"', drawn)[1])  # pyright: ignore[reportOptionalSubscript]
    low, high = map(float, re.search(r"M([\d.]+) 13.0H([\d.]+)", drawn).groups())  # pyright: ignore[reportOptionalMemberAccess]
    assert centre == pytest.approx((low + high) / 2, abs=0.2)
    assert low > span.place(0)
    assert "claimed" not in interval_svg(span, 0.02, (0.01, 0.03), False)


def test_what_is_far_off_is_cut_off_and_marked():
    near = [(-0.01, 0.0, 0.01)] * 5
    span = interval_span([*near, (0.8, 0.9, 1.0), (-3.0, 0.0, 3.0)])
    assert span.high < 0.1
    assert "<circle" not in interval_svg(span, 0.9, (0.8, 1.0), True)  # an arrow
    assert "<circle" in interval_svg(span, 0.0, (-3.0, 3.0), False)
    assert interval_span([]).place(0) == DifferenceScale(-1, 1).place(0)
