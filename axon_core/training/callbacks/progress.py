"""The hook that shows the progress of training."""

from __future__ import annotations

from typing import TextIO

from axon_core.progress import Clock
from axon_core.training.callbacks.surfaces import Lines, Surface, choose_surface
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
        self._loss, self._since = 0.0, 0  # the sum of the losses since the last line, and how many they are
        self._steps = self._evaluation = Clock(seconds)

    @hook
    def fit_start(self, fit: FitView) -> None:
        """Start the clock."""
        first, steps = fit.state.step, fit.trainer.config.steps
        self._surface = choose_surface(self._stream, self._seconds, first, steps)
        self._steps, self._evaluation = Clock(self._surface.pause, ends=True), Clock(self._surface.pause)
        self._steps.line(first, steps, units=fit.units)
        if first:
            self._surface.print(f"resumed after step {first}")

    @hook
    def step_end(self, fit: FitView, metrics: dict[str, float]) -> None:
        """Update the line if it is due."""
        self._loss, self._since = self._loss + metrics["loss"], self._since + 1
        loss = f"loss {self._loss / self._since:.4f}"
        step, trainer = fit.state.step, fit.trainer
        line = self._steps.line(step, trainer.config.steps, "step", facts=loss, units=fit.units, unit=trainer.unit)
        if line is not None:
            self._loss, self._since = 0.0, 0
            self._surface.renew(line, step)

    @hook
    def eval_progress(self, done: int, total: int, doing: str) -> None:
        """Show the progress of an evaluation in the same line, with its rate and remaining time."""
        if (line := self._evaluation.line(done, total, doing)) is not None:
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
