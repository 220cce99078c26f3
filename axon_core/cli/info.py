"""`axon info`."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.cli.paper_info import paper_records, print_paper
from axon_core.documents import to_toml
from axon_core.errors import UnknownKey, UsageError
from axon_core.papers.card import InstalledRecipe, cards, recipes
from axon_core.registry.discovery import Entry, discover, normalised_name
from axon_core.registry.registry import registry_of
from axon_core.registry.suggest import install_line, known_papers, unknown_name

_INDEX = "index.json"  # of token shards, whose module needs numpy
_NO_COMPONENTS = ("paper", "command", "hooks", "registry")


@click.command("info")
@click.argument("key")
@click.option("--verify", is_flag=True, help="Of a folder of token shards: compare all of it with its checksums.")
@json_option
def command(key: str, verify: bool, as_json: bool) -> None:
    """Describe KEY (or PLUGIN:KEY): a component with its options and its paper, or a recipe by name or TOML file.

    KEY can also be a paper or a plugin; this shows its claims, with the verdicts that the plugin was released with. Of
    a run folder it shows the model and the names of its classes. For a component or a run the plugin is imported; a
    recipe and a paper are only read. Of a folder of token shards it shows the counts.
    """
    if (Path(key) / _INDEX).is_file():
        _show_shards(Path(key), verify, as_json)
        return
    if verify:
        raise UsageError(f"--verify needs a folder of token shards, but {key} has no {_INDEX}")
    described = _recipes(key)
    records = [_recipe_record(recipe) for recipe in described] + paper_records(key)
    if (Path(key) / "run.json").is_file():
        records.append(_run_record(Path(key)))
    records += [_record(entry) for entry in _entries(key, needed=not records)]
    if as_json:
        print_json(records)
        return
    for record in records:
        {"recipe": _print_recipe, "run": _print_run, "paper": print_paper}.get(record["kind"], _print)(record)


def _show_shards(path: Path, verify: bool, as_json: bool) -> None:
    """Print what a folder of token shards holds.

    Raises:
        DataError: a file of it is missing, truncated or damaged.
    """
    from axon_core.cli.tokenize import described_shards  # here, because describing a recipe needs no numpy
    from axon_core.text.shards.folder import ShardFolder

    folder = ShardFolder(path)
    if verify:
        folder.verify()
    index = folder.index
    if as_json:
        record = index.model_dump(mode="json", exclude={"shards"})
        print_json([{"kind": "tokens", "path": str(path), **record, "shards": len(index.shards)}])
        return
    checked = ", all as their checksums say" if verify else ""
    echo(
        "\n".join([f"token shards {path}{checked}", *described_shards(index), f"tokenizer: {folder.tokenizer().type}"])
    )


def _run_record(path: Path) -> dict[str, Any]:
    """Return the recipe of a run and, once it has saved one, its model.

    Raises:
        CheckpointError: the run or its model is damaged.
    """
    from axon_core.checkpoint.models import load_config  # here, because describing a recipe needs no torch
    from axon_core.interfaces.model import Model
    from axon_core.training.pretrained import pinned_model_folder
    from axon_core.training.run_folder import RunFolder
    from axon_core.training.trainers import TRAINERS

    run = RunFolder.open(path)
    facts = run.facts.get("recipe") or {}
    record = {"kind": "run", "path": str(path), "recipe": facts.get("name"), "created": run.facts.get("created")}
    record["processes"] = run.facts.get("processes") or {}
    if not run.model.exists() and run.checkpoints.find(None) is None:
        return {**record, "model": None, "names": {}}
    with pinned_model_folder(path) as folder:
        model = load_config(folder, Model)
        names = TRAINERS[run.recipe().trainer.type].saved_names(folder) if facts else {}
    about = {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": model.config.model_dump(mode="json"),
    }
    return {**record, "model": about, "names": {kind: list(of) for kind, of in names.items()}}


def _print_run(record: dict[str, Any]) -> None:
    origin = f" of the recipe {record['recipe']}" if record["recipe"] else ""
    echo(f"run {record['path']}{origin}\nstarted: {record['created']}")
    if (processes := record["processes"]).get("count", 1) > 1:
        places = ", ".join(f"{count} × {place}" for place, count in processes["places"].items())
        echo(f"processes: {processes['count']} ({processes['strategy']}): {places}")
    if (model := record["model"]) is None:
        echo("model: none yet")
        return
    echo(f"model: {model['class']}, {model['parameters']:,} parameters\n\n{to_toml(model['config'])}")
    for kind, names in record["names"].items():
        print_table(["number", kind], [(str(number), name) for number, name in enumerate(names)])
        echo()


def _recipes(key: str) -> list[InstalledRecipe]:
    """Return every installed recipe named `key`, or the recipe in the TOML file `key`."""
    path = Path(key)
    if path.suffix == ".toml":
        return [InstalledRecipe(path.stem, "", "", path, "")]
    return [recipe for recipe in recipes() if key in (recipe.name, recipe.qualified)]


def _recipe_record(recipe: InstalledRecipe) -> dict[str, Any]:
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
    shows = f"; preview it:  axon train {name} --dry-run"
    echo(f"Run it:  axon {record['command']} {name}{shows if record['command'] == 'train' else ''}\n")


def _entries(key: str, needed: bool) -> list[Entry]:
    """Return every entry with that key, in any registry and plugin; if it is `needed`, there must be one."""
    distribution, qualified, bare = key.rpartition(":")
    components = [e for g, entries in discover().groups.items() if g not in _NO_COMPONENTS for e in entries]
    found = [
        e for e in components if e.key == bare and (not qualified or e.distribution == normalised_name(distribution))
    ]
    if not found and needed:
        brings = [p for p in known_papers() if any(bare in keys for keys in p.offers.values())]
        hints = [f"{p.title} (arXiv {p.arxiv}) offers it: {install_line(p.distribution)}" for p in brings]
        if Path(key).exists():
            hints.insert(0, f"The path {key} is not a run folder either: it has no run.json")
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
    """Return a JSON schema's type in a few words."""
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    if "anyOf" in field:
        return " | ".join(map(_type, field["anyOf"]))
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    return str(field.get("type", "any"))


def _about(field: dict[str, Any]) -> str:
    return " ".join(field.get("description", "").split())
