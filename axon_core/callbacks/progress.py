"""The hook that shows how far training has come."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from axon_core.evaluating import Clock
from axon_core.hooks import hook
from axon_core.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from axon_core.loop import Fit

__all__ = ["Progress"]


class Progress:
    """Shows step, loss, rate and remaining time: one line that renews itself, or plain lines without a terminal.

    The loss is the mean since the line was last renewed.

    Args:
        stream: where to write; the standard error by default.
        seconds: least time between two plain lines.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._pause = 0.2 if self._tty else seconds
        self._bar: Bar | None = None
        self._losses: list[float] = []
        self._begun = self._shown = 0.0
        self._first = 0
        self._units = 0.0
        self._clock: Clock | None = None

    @hook
    def fit_start(self, fit: Fit) -> None:
        """Start the clock."""
        self._begun = self._shown = time.monotonic()
        self._first = fit.state.step
        if self._first:
            self._print(f"resumed after step {self._first}")
        if self._tty:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
            # Renewed by hand: a thread of its own would take time from the training.
            self._bar = Bar(*columns, console=Console(file=self._stream), auto_refresh=False)
            self._bar.add_task("", total=fit.trainer.config.steps, completed=self._first)
            self._bar.start()

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Renew the line, if it is time to."""
        self._losses.append(metrics["loss"])
        now, step, steps = time.monotonic(), fit.state.step, fit.trainer.config.steps
        if now - self._shown < self._pause and step < steps:
            return
        rate = (fit.units - self._units) / max(now - self._shown, 1e-9)
        left = timedelta(seconds=round((now - self._begun) / (step - self._first) * (steps - step)))
        loss = sum(self._losses) / len(self._losses)
        line = f"step {step}/{steps}  loss {loss:.4f}  {rate:,.0f} {fit.trainer.unit}/s  ETA {left}"
        self._losses.clear()
        self._shown, self._units = now, fit.units
        if self._bar is None:
            self._print(line)
        else:
            self._bar.update(self._bar.task_ids[0], completed=step, description=line, refresh=True)

    @hook
    def eval_progress(self, done: int, total: int) -> None:
        """Show in the same line how far an evaluation has come, with its rate and remaining time."""
        self._clock = self._clock or Clock(self._pause)
        if (line := self._clock.line(done, total)) is None:
            return
        if self._bar is None:
            self._print(line)
        else:
            self._bar.update(self._bar.task_ids[0], description=line, refresh=True)

    @hook
    def eval_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Show an evaluation on a line of its own."""
        self._clock = None
        numbers = "  ".join(f"{name} {value:,.4f}".removesuffix(".0000") for name, value in metrics.items())
        self._print(f"step {fit.state.step}/{fit.trainer.config.steps}  held out: {numbers}")

    @hook
    def error(self) -> None:
        """Leave the line as it is."""
        self._stop()

    @hook
    def fit_end(self) -> None:
        """Leave the line as it is."""
        self._stop()

    def _print(self, line: str) -> None:
        line = printable(line)  # names of numbers are a trainer's
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.console.print(line, highlight=False, markup=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
