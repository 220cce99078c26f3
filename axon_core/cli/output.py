"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from axon_core.json_text import to_json

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Give a listing command the option `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    click.echo(to_json(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, one line a row; on a terminal that is too narrow for that, fold the cells."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        _print_folded(lines)
        return
    title, *body = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    click.echo("\n".join([click.style(title, bold=True), *body]))


def _print_folded(lines: Sequence[Sequence[str]]) -> None:
    """Print a table by rich, which is 20 times slower on long ones."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*lines[0], box=None, pad_edge=False, header_style="bold")
    for line in lines[1:]:
        table.add_row(*(Text(cell, overflow="fold") for cell in line))  # Text: a cell is never read as rich's markup
    Console().print(table)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return the number with its noun: `1 entry`, `2 entries`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def note_problems(number: int) -> None:
    """Tell on stderr that some plugins could not be read, where that is so."""
    if number:
        click.echo(f"{counted(number, 'problem')} with installed plugins: `axon doctor` explains.", err=True)
