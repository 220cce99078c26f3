"""`axon info`."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.discovery import Entry, discover, normalised
from axon_core.documents import to_toml
from axon_core.errors import UnknownKey
from axon_core.paper import Recipe, cards, recipes
from axon_core.registry import registry_of
from axon_core.suggest import install_line, known_papers, unknown_name

_NO_COMPONENTS = ("paper", "command", "hooks", "registry")


@click.command("info")
@click.argument("key")
@json_option
def command(key: str, as_json: bool) -> None:
    """Describe KEY (or PLUGIN:KEY): a component, with its options and its paper, or a recipe, also as a TOML file.

    A component's plugin is imported; a recipe is only read.
    """
    described = _recipes(key)
    records = [_recipe_record(recipe) for recipe in described]
    records += [_record(entry) for entry in _entries(key, needed=not described)]
    if as_json:
        print_json(records)
        return
    for record in records:
        (_print_recipe if record["kind"] == "recipe" else _print)(record)


def _recipes(key: str) -> list[Recipe]:
    """Every installed recipe of that name, or the file that `key` is the path of."""
    path = Path(key)
    if path.suffix == ".toml":
        return [Recipe(path.stem, "", "", path, "")]
    return [recipe for recipe in recipes() if key in (recipe.name, recipe.qualified)]


def _recipe_record(recipe: Recipe) -> dict[str, Any]:
    tables = recipe.tables
    about = {name: tables.pop(name, default) for name, default in (("summary", ""), ("command", "train"))}
    return {
        "kind": "recipe",
        "key": recipe.name,
        "distribution": recipe.distribution,
        "version": recipe.version,
        "path": str(recipe.path),
        **about,
        "tables": tables,
    }


def _print_recipe(record: dict[str, Any]) -> None:
    origin = f": {record['distribution']} {record['version']}" if record["distribution"] else ""
    echo(f"recipe {record['key']}{origin}\nfile: {record['path']}")
    if record["summary"]:
        echo(f"\n{record['summary']}")
    echo(f"\n{to_toml(record['tables'])}")
    name = shlex.quote(record["key"] if record["distribution"] else record["path"])
    shows = f"; with --dry-run it says what that comes to: axon train {name} --dry-run"
    echo(f"Run it:  axon {record['command']} {name}{shows if record['command'] == 'train' else ''}\n")


def _entries(key: str, needed: bool) -> list[Entry]:
    """Every entry of that key, in whatever registry and plugin; where it is `needed`, there must be one."""
    distribution, qualified, bare = key.rpartition(":")
    components = [e for g, entries in discover().groups.items() if g not in _NO_COMPONENTS for e in entries]
    found = [e for e in components if e.key == bare and (not qualified or e.distribution == normalised(distribution))]
    if not found and needed:
        brings = [p for p in known_papers() if any(bare in keys for keys in p.offers.values())]
        hints = [f"{p.title} (arXiv {p.arxiv}) offers it: {install_line(p.distribution)}" for p in brings]
        raise UnknownKey(
            unknown_name(
                "component", key, {e.key: e.source for e in components}, *hints, "`axon recipes` lists recipes"
            )
        )
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
