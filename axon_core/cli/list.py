"""`axon list`."""

from __future__ import annotations

from collections import Counter

import click

from axon_core.cli.output import echo, json_option, note_problems, note_refused, print_json, print_table
from axon_core.errors import UnknownKey
from axon_core.registry.discovery import discover
from axon_core.registry.suggest import unknown_name


@click.command("list")
@click.argument("kind", required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """List what the installed plugins offer, or only KIND (attention, norm, model, …). This runs no plugin's code."""
    found = discover()
    kinds = {group: f"{len(found.entries(group))} installed" for group in sorted({*found.served, *found.groups})}
    if kind is not None and kind not in kinds:
        raise UnknownKey(unknown_name("kind", kind, kinds))
    entries = [e for group in sorted(found.groups) if kind in (None, group) for e in found.entries(group)]
    if as_json:
        fields = ("group", "key", "distribution", "version", "target")
        print_json([{name: getattr(entry, name) for name in fields} for entry in entries])
    elif entries:
        claims = Counter((e.group, e.key) for e in entries)
        names = [e.key if claims[e.group, e.key] == 1 else e.qualified for e in entries]
        rows = [(e.group, name, e.source) for e, name in zip(entries, names, strict=True)]
        print_table(["kind", "key", "plugin"], rows)
    else:
        echo(f"No {kind or 'plugin'} is installed; `axon search` lists papers to install.")
    note_refused(found.refused)
    note_problems(len(found.problems))
