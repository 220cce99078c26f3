"""`axon recipes`."""

from __future__ import annotations

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.papers.card import recipes


@click.command("recipes")
@json_option
def command(as_json: bool) -> None:
    """List the recipes of the installed plugins; `axon train RECIPE` takes a name or any TOML file."""
    found = recipes()
    if as_json:
        fields = ("name", "distribution", "version", "summary", "command")
        print_json([{**{name: getattr(r, name) for name in fields}, "path": str(r.path)} for r in found])
    elif found:
        names = [r.name for r in found]
        rows = [(r.name if names.count(r.name) == 1 else r.qualified, r.summary, r.distribution) for r in found]
        print_table(["recipe", "summary", "plugin"], rows)
    else:
        echo("No installed plugin has a recipe.")
