"""How far work has come, in one line: how much of how much, how fast, and for how long yet."""

from __future__ import annotations

import math
import time
from datetime import timedelta

__all__ = ["Clock"]


class Clock:
    """Describes the progress, rate and remaining time of work: `evaluating 3/9  1.0/s  ETA 0:00:06`.

    The rate is that since the last line, the remaining time follows from all of the work. The clock starts with the
    first call, and restarts when less is done than before: for another evaluation, or another part.

    Args:
        seconds: minimum time between two lines.
        ends: whether the end has a line too, however soon it comes.
    """

    def __init__(self, seconds: float, *, ends: bool = False) -> None:
        self._seconds, self._ends = seconds, ends
        self._begun = self._shown = 0.0
        self._first = self._units = 0.0
        self._done = math.inf

    def line(
        self,
        done: int,
        total: int,
        doing: str = "evaluating",
        *,
        facts: str = "",
        units: float | None = None,
        unit: str = "",
    ) -> str | None:
        """Return the line, or None if one has just been shown or there is nothing left to wait for.

        Args:
            done: how much is done.
            total: of how much.
            doing: a word for what is done, or what is counted.
            facts: what else to say, after the numbers.
            units: what the rate counts, since the work began; left out, `done`.
            unit: what to call them.
        """
        now, counted = time.monotonic(), done if units is None else units
        if done < self._done:
            self._begun = self._shown = now
            self._first, self._units = done, counted
        self._done = done
        if not (now - self._shown >= self._seconds if done < total else self._ends):
            return None
        words = [f"{doing} {done:,}/{total:,}", *([facts] if facts else [])]
        if done > self._first:
            rate = (counted - self._units) / max(now - self._shown, 1e-9)
            left = timedelta(seconds=round((now - self._begun) / (done - self._first) * (total - done)))
            words += [f"{rate:,.{0 if rate >= 10 else 1}f}{f' {unit}' if unit else ''}/s", f"ETA {left}"]
        self._shown, self._units = now, counted
        return "  ".join(words)
