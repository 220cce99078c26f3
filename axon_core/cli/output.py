"""What commands print: tables for people, JSON for programs.

Every command prints with `echo`, and a model's output with `echo_generated`. Whatever comes from a file, an argument
or a model reaches a terminal only as text.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from axon_core.escaping import printable, printable_json, shortened
from axon_core.json_text import to_json
from axon_core.progress import Clock

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Give a listing command the option `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a message of Axon on the standard output or error, with terminal control characters made visible.

    Files and pipes get the same text, because people view them in a terminal later.
    """
    _write(printable(text), err, nl)


def echo_generated(text: str = "", *, nl: bool = True) -> None:
    """Print what a model wrote: on a terminal as `echo` does, into a file or pipe unchanged."""
    if sys.stdout.isatty():
        echo(text, nl=nl)
    else:
        _write(text, False, nl, exact=True)


def echo_renewed(line: str, *, last: bool) -> None:
    """Show a line of progress on the standard error; on a terminal it replaces the previous line.

    The `last` line stays.
    """
    if sys.stderr.isatty():
        _write(f"\r\033[K{printable(line, line=True)}", True, last)
    else:
        echo(line, err=True)


class ProgressLine:
    """Shows how far a command has come on the standard error: on one line of a terminal, or on one every 5 seconds.

    Args:
        doing: a word for what is done, or what is counted.
        unit: what the rate counts, if that is something else.
    """

    def __init__(self, doing: str, unit: str = "") -> None:
        self._doing, self._unit = doing, unit
        self._clock = Clock(0.2 if sys.stderr.isatty() else 5.0, ends=True)

    def __call__(self, done: int, total: int, units: float | None = None) -> None:
        """Show that so much is done, if a line is due; the first call starts the clock."""
        if line := self._clock.line(done, total, self._doing, units=units, unit=self._unit):
            echo_renewed(line, last=done >= total)


def _write(text: str, err: bool, nl: bool, exact: bool = False) -> None:
    """Print text; unless `exact`, click strips its styles if the output is not a terminal."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err, nl=nl, color=exact or None)


MOST = 4000
"""Largest number of characters in a message, which may quote a value of any length."""


class Warnings(logging.Handler):
    """Prints log records on the standard error with `echo`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message; if the reader has closed the pipe, the work continues."""
        with contextlib.suppress(OSError):
            echo(shortened(self.format(record), MOST), err=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON, with terminal control characters escaped."""
    _write(printable_json(to_json(value, indent=2, ensure_ascii=False)), False, True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, one line per row; on a terminal that is too narrow, fold the cells."""
    lines = [tuple(printable(cell, line=True) for cell in row) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        _print_folded(lines)
        return
    title, *body = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    _write("\n".join([click.style(title, bold=True), *body]), False, True)


def _print_folded(lines: Sequence[Sequence[str]]) -> None:
    """Print a table with rich, which is 20 times slower for long tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*lines[0], box=None, pad_edge=False, header_style="bold")
    for line in lines[1:]:
        table.add_row(*(Text(cell, overflow="fold") for cell in line))  # Text, because rich parses markup in a str
    Console().print(table)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return the number with its noun: `1 entry`, `2 entries`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def note_problems(number: int) -> None:
    """If some plugins could not be read, say so on the standard error."""
    if number:
        echo(f"{counted(number, 'problem')} with installed plugins: `axon doctor` explains.", err=True)


def note_refused(refused: Mapping[str, str]) -> None:
    """Say on the standard error which plugins an allow-list refuses, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(refused.items()):
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        echo(f"refused: {', '.join(names)}: {reason}", err=True)
