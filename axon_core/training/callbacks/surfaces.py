"""Where a progress line is shown: in a terminal, in a notebook's cell, or as plain lines anywhere else."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Protocol, TextIO

from axon_core.escaping import printable

__all__ = ["Cell", "Lines", "Surface", "Terminal", "choose_surface"]


class Surface(Protocol):
    """Shows lines that stay, and one that is updated in place.

    Attributes:
        pause: minimum time in seconds between two updates.
    """

    pause: float

    def print(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def renew(self, line: str, step: int | None = None) -> None:
        """Show a line in place of the last updated one, and the number of steps done, if it has changed."""
        ...

    def close(self) -> None:
        """Leave what is shown as it is."""
        ...


class Lines:
    """Plain lines, each of which stays: for a file, a pipe, or a log.

    Args:
        stream: where to write; nowhere if the program has no such stream.
        pause: minimum time in seconds between two updates.
    """

    def __init__(self, stream: TextIO | None, pause: float) -> None:
        self._stream = stream
        self.pause = pause

    def print(self, line: str) -> None:
        """Write a line."""
        if self._stream is not None:
            print(printable(line), file=self._stream, flush=True)

    def renew(self, line: str, step: int | None = None) -> None:
        """Write a line."""
        self.print(line)

    def close(self) -> None:
        """Do nothing."""


class Terminal:
    """A bar and a line, at the bottom of a terminal.

    Args:
        stream: the terminal.
        first: steps done before.
        total: steps in all.
    """

    pause = 0.2

    def __init__(self, stream: TextIO, first: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        # Refreshed by hand: a thread of its own would take time from training.
        self._bar = Progress(*columns, console=Console(file=stream), auto_refresh=False)
        self._task = self._bar.add_task("", total=total, completed=first)
        self._bar.start()

    def print(self, line: str) -> None:
        """Show a line above the bar."""
        self._bar.console.print(printable(line), highlight=False, markup=False)

    def renew(self, line: str, step: int | None = None) -> None:
        """Update the bar and its line."""
        self._bar.update(self._task, completed=step, description=printable(line), refresh=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


class Cell:
    """One output of a notebook's cell: the lines that stay, and below them the one that is updated."""

    pause = 0.5

    def __init__(self) -> None:
        self._display: Any = import_module("IPython.display").display
        self._handle: Any = None
        self._lines: list[str] = []
        self._last = ""

    def print(self, line: str) -> None:
        """Show a line above the one that is updated."""
        self._lines.append(printable(line))
        self._show()

    def renew(self, line: str, step: int | None = None) -> None:
        """Update the last line."""
        self._last = printable(line)
        self._show()

    def close(self) -> None:
        """Do nothing: a cell keeps what was shown last."""

    def _show(self) -> None:
        shown = {"text/plain": "\n".join(filter(None, [*self._lines, self._last]))}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def choose_surface(stream: TextIO | None, pause: float, first: int, total: int) -> Surface:
    """Return where to show progress: on `stream`, or if it is None, in the notebook's cell or on standard error.

    Args:
        stream: where to write; None for the usual place.
        pause: minimum time in seconds between two plain lines.
        first: steps done before.
        total: steps in all.
    """
    if stream is None and _in_notebook():
        return Cell()
    stream = stream or sys.stderr
    if stream is not None and stream.isatty():  # pyright: ignore[reportUnnecessaryComparison]  a program may have none
        return Terminal(stream, first, total)
    return Lines(stream, pause)


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, without importing anything."""
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")
