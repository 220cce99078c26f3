"""The hook that shows the progress of training."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TextIO

from axon_core.training.callbacks.surfaces import Lines, Surface, choose_surface
from axon_core.training.evaluation import Clock
from axon_core.training.hooks import FitView, hook

__all__ = ["Progress"]


class Progress:
    """Shows step, loss, rate and remaining time: one line updated in place, or plain lines without a terminal.

    The loss is the mean since the line was last updated. In a notebook the line is in the cell's output.

    Args:
        stream: where to write; by default the notebook's cell, or else standard error.
        seconds: minimum time between two plain lines.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 5.0) -> None:
        self._stream = stream
        self._seconds = seconds
        self._surface: Surface = Lines(None, seconds)
        self._losses: list[float] = []
        self._begun = self._shown = 0.0
        self._first = 0
        self._units = 0.0
        self._clock = Clock(seconds)

    @hook
    def fit_start(self, fit: FitView) -> None:
        """Start the clock."""
        self._begun = self._shown = time.monotonic()
        self._units = 0.0
        self._first = fit.state.step
        self._surface = choose_surface(self._stream, self._seconds, self._first, fit.trainer.config.steps)
        self._clock = Clock(self._surface.pause)
        if self._first:
            self._surface.print(f"resumed after step {self._first}")

    @hook
    def step_end(self, fit: FitView, metrics: dict[str, float]) -> None:
        """Update the line if it is due."""
        self._losses.append(metrics["loss"])
        now, step, steps = time.monotonic(), fit.state.step, fit.trainer.config.steps
        if now - self._shown < self._surface.pause and step < steps:
            return
        rate = (fit.units - self._units) / max(now - self._shown, 1e-9)
        left = timedelta(seconds=round((now - self._begun) / (step - self._first) * (steps - step)))
        loss = sum(self._losses) / len(self._losses)
        line = f"step {step}/{steps}  loss {loss:.4f}  {rate:,.0f} {fit.trainer.unit}/s  ETA {left}"
        self._losses.clear()
        self._shown, self._units = now, fit.units
        self._surface.renew(line, step)

    @hook
    def eval_progress(self, done: int, total: int, doing: str) -> None:
        """Show the progress of an evaluation in the same line, with its rate and remaining time."""
        if (line := self._clock.line(done, total, doing)) is not None:
            self._surface.renew(line)

    @hook
    def eval_end(self, fit: FitView, metrics: dict[str, float]) -> None:
        """Show an evaluation on a line of its own."""
        numbers = "  ".join(f"{name} {value:,.4f}".removesuffix(".0000") for name, value in metrics.items())
        self._surface.print(f"step {fit.state.step}/{fit.trainer.config.steps}  held out: {numbers}")

    @hook
    def error(self) -> None:
        """Leave the line as it is."""
        self._surface.close()

    @hook
    def fit_end(self) -> None:
        """Leave the line as it is."""
        self._surface.close()
