"""`axon doctor`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from axon_core.cli.examination import examine_environment
from axon_core.cli.output import counted, echo, json_option, note_refused, print_json
from axon_core.registry.discovery import Problem


@click.command("doctor")
@click.option(
    "--lock",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Compare what is installed with the lock of a run folder, or with a lock file, and do nothing else.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, lock: Path | None, as_json: bool) -> None:
    """Check every installed plugin, say how to repair what is broken, and exit with 1 if there is a problem.

    This imports every plugin and so runs its code. With --lock nothing is imported.
    """
    ctx.exit(1 if (_examine(as_json) if lock is None else _compare(lock, as_json)) else 0)


def _examine(as_json: bool) -> bool:
    """Print what is wrong with the installed plugins, and return whether anything is."""
    from importlib.metadata import version

    echo("Importing every plugin, which runs its code …", err=True)
    found, problems = examine_environment()
    entries = [entry for group in found.groups.values() for entry in group]
    if as_json:
        refused = dict(found.refused)
        print_json({"entries": len(entries), "problems": [asdict(each) for each in problems], "refused": refused})
    else:
        echo(f"axon-core {version('axon-core')}, Python {sys.version.split()[0]}, {sys.prefix}")
        _print(problems)
        plugins = counted(len({entry.distribution for entry in entries}), "plugin")
        verdict = counted(len(problems), "problem") if problems else "no problem"
        note_refused(found.refused)
        echo(f"\n{plugins} with {counted(len(entries), 'entry', 'entries')}: {verdict}.")
    return bool(problems)


def _compare(path: Path, as_json: bool) -> bool:
    """Print how what is installed differs from a lock, and return whether it does."""
    from axon_core.registry.environment_lock import read_lock
    from axon_core.registry.lock_comparison import lock_differences, restoring_command

    lock = read_lock(path)
    found = lock_differences(lock)
    restore = restoring_command(lock, found)
    if as_json:
        print_json({"at_start": lock.at_start, "differences": [asdict(each) for each in found], "restore": restore})
        return bool(found)
    _print(found)
    number = counted(len(lock.distributions) + len(lock.libraries), "distribution")
    verdict = counted(len(found), "difference") if found else "all as in the lock"
    echo(f"{number} and Python {lock.python}: {verdict}." if not found else f"\n{number}: {verdict}.")
    if not lock.at_start:
        echo("This lock was written after the run began, when the versions in its run.json agreed.")
    if lock.by_hand:
        echo(f"Registered by hand, and in no distribution: {', '.join(lock.by_hand)}.")
    if restore is not None:
        echo(f"To restore it: {restore}")
    return bool(found)


def _print(problems: Iterable[Problem]) -> None:
    for problem in problems:
        echo(f"\n{problem.distribution}\n  wrong: {problem.what}\n  to do: {problem.remedy}")
