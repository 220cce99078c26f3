"""`axon doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from axon_core.cli.examination import examine_environment
from axon_core.cli.output import counted, echo, json_option, print_json


@click.command("doctor")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check every installed plugin, say how to repair what is broken, and exit with 1 if there is a problem.

    This imports every plugin and so runs its code.
    """
    from importlib.metadata import version

    echo("Importing every plugin, which runs its code …", err=True)
    found, problems = examine_environment()
    entries = [entry for group in found.groups.values() for entry in group]
    if as_json:
        print_json({"entries": len(entries), "problems": [asdict(problem) for problem in problems]})
    else:
        echo(f"axon-core {version('axon-core')}, Python {sys.version.split()[0]}, {sys.prefix}")
        for problem in problems:
            echo(f"\n{problem.distribution}\n  wrong: {problem.what}\n  to do: {problem.remedy}")
        plugins = counted(len({entry.distribution for entry in entries}), "plugin")
        verdict = counted(len(problems), "problem") if problems else "no problem"
        echo(f"\n{plugins} with {counted(len(entries), 'entry', 'entries')}: {verdict}.")
    ctx.exit(1 if problems else 0)
