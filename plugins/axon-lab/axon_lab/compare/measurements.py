"""Hooks that measure a training: the metric over steps and seconds, with evaluations and checkpoints left out."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from axon_core import Config, ConfigError, parse_json, validate
from axon_core.checkpoint import write_text
from axon_core.training import hook
from axon_lab.compare.results import CurvePoint

if TYPE_CHECKING:
    from axon_core.training import Fit

__all__ = ["Measurements", "Pace", "points_at"]

_UNTIMED = 2  # first steps, in which memory is first touched and kernels are chosen


def points_at(steps: int, evaluations: int) -> frozenset[int]:
    """Return the steps after which a run is evaluated, at equal distances, the last one included.

    >>> sorted(points_at(60, 5))
    [12, 24, 36, 48, 60]
    """
    return frozenset(max(1, round(steps * i / evaluations)) for i in range(1, evaluations + 1))


class _Point(Config):
    step: NonNegativeInt
    seconds: NonNegativeFloat
    units: NonNegativeFloat
    value: float | None = None


class _Points(Config):
    points: tuple[_Point, ...] = ()


class Measurements:
    """Asks for evaluations and checkpoints at given steps, and keeps step, seconds and metric in a file.

    Args:
        file: where the points are kept, so that a run that is resumed continues them.
        at: the steps to evaluate and save after.
        metric: the number of the evaluation that is kept.

    Attributes:
        seconds: seconds of training so far, over all processes that took part.
        units: how many of the trainer's unit were trained on.
    """

    def __init__(self, file: Path, at: frozenset[int], metric: str) -> None:
        self.seconds, self.units = 0.0, 0.0
        self._file, self._at, self._metric = file, at, metric
        self._points: dict[int, _Point] = {}
        self._mark, self._before = 0.0, 0.0

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The metric over the training."""
        return tuple(
            CurvePoint(step=point.step, seconds=point.seconds, value=point.value)
            for _, point in sorted(self._points.items())
            if point.value is not None
        )

    @hook
    def fit_start(self, fit: Fit) -> None:
        """Continue what an earlier process measured up to this step."""
        step = fit.state.step
        self._points = {point.step: point for point in self._read() if point.step <= step}
        if self._points:
            last = self._points[max(self._points)]
            since = step / last.step if last.step else 1.0  # a kill between checkpoint and file loses a little
            self.seconds, self.units = last.seconds * since, last.units * since
        self._before = self.units
        self._mark = time.perf_counter()

    @hook
    def step_end(self, fit: Fit) -> Literal["eval"] | None:
        """Add the step's time; ask for an evaluation if one is due."""
        now = time.perf_counter()
        self.seconds, self._mark = self.seconds + now - self._mark, now
        self.units = self._before + fit.units
        return "eval" if fit.state.step in self._at else None

    @hook
    def eval_end(self, fit: Fit, metrics: dict[str, float]) -> Literal["save"]:
        """Keep the metric, and ask for a checkpoint."""
        self._keep(fit.state.step, metrics.get(self._metric))
        return "save"

    @hook
    def saved(self, fit: Fit) -> None:
        """Keep how long it took to come here, for a process that continues from this checkpoint."""
        known = self._points.get(fit.state.step)
        self._keep(fit.state.step, known.value if known else None)

    def _keep(self, step: int, value: float | None) -> None:
        self._points[step] = _Point(step=step, seconds=self.seconds, units=self.units, value=value)
        write_text(self._file, _Points(points=tuple(self._points.values())).model_dump_json())
        self._mark = time.perf_counter()

    def _read(self) -> tuple[_Point, ...]:
        try:
            return validate(_Points, parse_json(self._file.read_text("utf-8-sig"))).points
        except (OSError, ValueError, ConfigError):
            return ()


class Pace:
    """Ends a training after a time, and measures how long its updates take.

    Args:
        seconds: when to end it, after at least three updates that count.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = self._mark = 0.0
        self._times: list[float] = []

    @property
    def median(self) -> float:
        """Seconds of an update, the median without the first two."""
        return statistics.median(self._times[_UNTIMED:] or self._times)

    @hook
    def fit_start(self) -> None:
        """Start the clock."""
        self._begun = self._mark = time.perf_counter()

    @hook
    def step_end(self) -> Literal["stop"] | None:
        """Note the time; ask to stop when it is over."""
        now = time.perf_counter()
        self._times.append(now - self._mark)
        self._mark = now
        return "stop" if now - self._begun >= self._seconds and len(self._times) >= _UNTIMED + 3 else None
