"""`axon info`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.discovery import Entry, discover, normalised
from axon_core.errors import UnknownKey
from axon_core.paper import cards
from axon_core.registry import registry_of
from axon_core.suggest import known_papers, unknown_name

_NO_COMPONENTS = ("paper", "command", "hooks", "registry")


@click.command("info")
@click.argument("key")
@json_option
def command(key: str, as_json: bool) -> None:
    """Describe the component KEY (or PLUGIN:KEY): what it is, its options and its paper. Imports the plugin."""
    records = [_record(entry) for entry in _entries(key)]
    if as_json:
        print_json(records)
        return
    for record in records:
        _print(record)


def _entries(key: str) -> list[Entry]:
    """Every entry of that key, in whatever registry and plugin."""
    distribution, qualified, bare = key.rpartition(":")
    components = [e for g, entries in discover().groups.items() if g not in _NO_COMPONENTS for e in entries]
    found = [e for e in components if e.key == bare and (not qualified or e.distribution == normalised(distribution))]
    if not found:
        brings = [p for p in known_papers() if any(bare in keys for keys in p.offers.values())]
        hints = [f"{p.title} (arXiv {p.arxiv}) offers it: pip install {p.distribution}" for p in brings]
        raise UnknownKey(unknown_name("component", key, {e.key: e.source for e in components}, *hints))
    return found


def _record(entry: Entry) -> dict[str, Any]:
    registry = registry_of(entry.group)
    papers = [c.paper for c in cards() if c.paper and c.entry.distribution == entry.distribution]
    return {
        "kind": entry.group,
        "key": entry.key,
        "distribution": entry.distribution,
        "version": entry.version,
        "target": entry.target,
        "about": inspect.getdoc(registry[entry.qualified]) or "",
        "papers": [f"{p.title} (arXiv {p.arxiv}, {p.year})" for p in papers],
        "options": registry.schema(entry.qualified),
    }


def _print(record: dict[str, Any]) -> None:
    echo(f"{record['kind'].replace('_', ' ')} {record['key']}: {record['distribution']} {record['version']}")
    echo(f"class: {record['target']}")
    for paper in record["papers"]:
        echo(f"paper: {paper}")
    echo(f"\n{record['about']}\n")
    schema = record["options"]
    required = schema.get("required", ())
    rows = [
        (name, _type(field), "required" if name in required else str(field.get("default", "computed")), _about(field))
        for name, field in schema.get("properties", {}).items()
    ]
    print_table(["option", "type", "default", "about"], rows)
    echo()


def _type(field: dict[str, Any]) -> str:
    """A JSON schema's type, in one word or a few."""
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    if "anyOf" in field:
        return " | ".join(map(_type, field["anyOf"]))
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    return str(field.get("type", "any"))


def _about(field: dict[str, Any]) -> str:
    return " ".join(field.get("description", "").split())
