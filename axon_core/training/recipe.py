"""Recipes: one training described by a TOML file, with overrides from the command line.

summary = "X on Y"
[model]                     # handed to the trainer, which builds it and passes down what it knows better
type = "mymodel"
[trainer]
type = "causal_lm"
steps = 2000
[data]
path = "text.txt"
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, cast

from pydantic import Field

from axon_core import config
from axon_core.config import at, current_names, former_names, merged, validate
from axon_core.documents import parse_toml
from axon_core.errors import ConfigError, UsageError
from axon_core.escaping import shortened
from axon_core.registry.spec import Spec
from axon_core.training.recipe_sections import RECIPE_SECTIONS
from axon_core.training.swapping import Swap, Table, current_path, default_part, report, schemas_of, swap

__all__ = ["Recipe", "override"]


class Recipe(config.Config):
    """What to train, on what, and how. A recipe says each thing once: a trainer derives the rest."""

    name: str
    """What the run folder is named after."""
    source: str
    """Where it was read from, for messages."""
    summary: str = ""
    """One line for listings."""
    model: Table = Field(default_factory=dict)
    """The model, or several by role, as the trainer wants it."""
    trainer: Spec
    """The registered trainer and its options."""
    data: Table = Field(default_factory=dict)
    """The data, as the trainer wants it."""
    sections: dict[str, Table] = Field(default_factory=dict)
    """Further tables, by the names of the registered `RecipeSection`s that they are for."""
    swaps: tuple[Swap, ...] = ()
    """The parts that overrides have replaced, as `run.json` records them."""

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read an installed recipe by name, or a TOML file by path, and apply `overrides` like `"a.b=c"`.

        Raises:
            UnknownKey: no installed plugin provides a recipe of that name.
            ConfigError: the file is not TOML, or a table is missing or misspelt.
            UsageError: there is no such file, an override is malformed, or another command is for the recipe.
        """
        path = Path(name)
        if path.suffix != ".toml" and not path.is_file():
            from axon_core.papers.card import find_recipe

            path = find_recipe(str(name)).path
        try:
            tables = parse_toml(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from None
        except ValueError as error:  # not TOML, or not UTF-8
            raise ConfigError([((), f"not valid TOML: {error}")], str(path)) from None
        return cls.of(tables, path.stem, str(path), overrides)

    @classmethod
    def of(cls, tables: Mapping[str, Any], name: str, source: str, overrides: Iterable[str] = ()) -> Self:
        """Make a recipe from its tables.

        Raises:
            ConfigError: a table or an override breaks a rule; the message names `source` and the overrides.
            UsageError: an override is malformed, or goes into something that is not a table; or another command is for
                these tables.
        """
        overrides = list(overrides)
        read_from = source
        if overrides:
            source = f"{source} with {' '.join(f'--set {text}' for text in overrides)}"
        with at(source=source):
            result, swaps = _overridden(tables, overrides)
            if reserved := result.keys() & {"name", "source", "sections"}:
                raise ConfigError([((key,), "remove it: a recipe is named after its file") for key in sorted(reserved)])
            if "trainer" not in result and (command := _command(result)):
                words = shlex.join(["axon", command, name if _installed(name, read_from) else read_from])
                raise UsageError(f"{name} describes several trainings, each with its own tables: use `{words}`")
            if strays := [*_strays(result)]:
                raise ConfigError(strays)
            sections = {key: _table(key, result.pop(key)) for key in sorted(result.keys() - cls.model_fields.keys())}
            recipe = validate(cls, {**result, "sections": sections, "name": name, "source": source})
        report(swaps)
        return recipe.model_copy(update={"swaps": (*recipe.swaps, *swaps)})

    @property
    def tables(self) -> Table:
        """The recipe's contents as `of` takes them."""
        without = {"name", "source", "sections", *(() if self.swaps else ("swaps",))}
        return {**self.model_dump(mode="json", exclude=without), **self.sections}


def _table(name: str, value: Any) -> Table:
    """Return a section's table; a text is short for a table with this `type`."""
    if isinstance(value, str):
        return {"type": value}
    if not isinstance(value, dict):
        raise ConfigError([((name,), f"must be a table, got {shortened(repr(value), 200)}")])
    return cast(Table, value)


def _strays(tables: Table) -> Generator[tuple[tuple[str, ...], str]]:
    """Yield the fields a recipe does not have, each with the table it may belong in or a name close to it."""
    known = ("summary", "model", "trainer", "data", *RECIPE_SECTIONS)
    for name in sorted(tables.keys() - Recipe.model_fields.keys() - {*RECIPE_SECTIONS}):
        inside = [f"{table}.{found}" for table in known if (found := _field(tables.get(table), name))]
        near = inside or difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
        yield (name,), f"unknown field {name!r} ({hint})"


def _field(table: Any, name: str) -> str | None:
    """Return the name now of a field that a table of a recipe has or, as its `type` says, may have; else None."""
    schemas = schemas_of(table)
    name = former_names(schemas).get(name, name)
    given = isinstance(table, dict) and name in table
    return name if given or any(name in schema.model_fields for schema in schemas) else None


def _installed(name: str, source: str) -> bool:
    from axon_core.papers.card import recipes

    return any(found.name == name and str(found.path) == source for found in recipes())


def _command(tables: Table) -> str | None:
    """Return the command that a recipe without a trainer of its own is for, if it can be told."""
    from axon_core.papers.card import recipes

    if isinstance(command := tables.get("command"), str):
        return command
    stages = [table for table in tables.values() if isinstance(table, dict) and "trainer" in table]
    commands = {recipe.command for recipe in recipes()} - {"train"} if stages else set[str]()
    return commands.pop() if len(commands) == 1 else None


def override(tables: Mapping[str, Any], overrides: Iterable[str]) -> Table:
    """Return a copy of `tables` with each `"a.b=c"` set; a value that is not TOML is a string.

    Setting the `type` of a part to another value, or the part itself to a name, keeps every option that the new part
    has too; a warning says what was kept, what was dropped, and why. A table, `"a.b={type='c'}"`, replaces the whole
    part. Outer fields are set before inner ones, so the order of `overrides` does not matter.

    >>> override({"optimizer": {"type": "muon", "lr": 0.1, "momentum": 0.9}}, ["steps=8", "optimizer.type=adamw"])
    {'optimizer': {'type': 'adamw', 'lr': 0.1}, 'steps': 8}

    Raises:
        UsageError: an override is not of that form, or goes into something that is not a table.
    """
    result, swaps = _overridden(tables, overrides)
    report(swaps)
    return result


def _overridden(tables: Mapping[str, Any], overrides: Iterable[str]) -> tuple[Table, list[Swap]]:
    parsed, swaps = [_parse(text) for text in overrides], list[Swap]()
    result = current_names(tables, (), schemas_of) if parsed else dict(tables)
    paths = [path for path, _, _ in parsed]
    for written, value, text in sorted(parsed, key=lambda item: _depth(item[0])):
        path = current_path(result, written)
        if path != written and path in paths:
            raise UsageError(f"--set {text}: {written[-1]} is the former name of {path[-1]}, which is set too")
        outer, name = path[:-1], path[-1]
        table = _inside(result, outer, text)
        place = outer if name == "type" else path
        present = table if name == "type" else table.get(name)
        old = _part(result, place, present) if isinstance(value, str) else None
        if old is None or old["type"] == value:
            table[name] = value
            continue
        if value.startswith("{"):
            raise UsageError(f"--set {text}: not a TOML table; put texts in quotes, as in {{type='MyPart'}}")
        given = frozenset(other[len(place)] for other in paths if other[: len(place)] == place and other > place)
        new, done = swap(place, old, value, given)
        swaps.append(done)
        if name == "type":
            table.clear()
            table.update(new)
        else:
            table[name] = new
    return result, swaps


def _depth(path: list[str]) -> tuple[int, bool]:
    """Order paths so that a table comes before its fields, and its `type` before the others: it determines them."""
    return len(path) - (path[-1] == "type"), path[-1] == "type"


def _inside(tables: Table, path: list[str], text: str) -> Table:
    """Return the table at `path`, made if there is none."""
    table = tables
    for name in path:
        inner = {} if (found := table.get(name)) is None else found
        if isinstance(inner, str):  # the short form of a component without options
            inner = {"type": inner}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {text}: {name} is the value {inner!r}, not a table with fields")
        table[name] = table = cast(Table, inner)
    return table


def _part(tables: Table, path: list[str], present: Any) -> Table | None:
    """Return the table of the part that is to be replaced, if there is one; its type may be left to the default."""
    if isinstance(present, str):
        return None  # a value like any other, or the short form of a part without options
    found = cast(Table, present) if isinstance(present, dict) else {}
    if isinstance(found.get("type"), str):
        return found
    default = default_part(tables, path) if path else None
    if default is None:
        return None
    return merged(default, found)


def _parse(text: str) -> tuple[list[str], Any, str]:
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set takes table.field=value, got {text!r}")
    try:
        parsed = parse_toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    except ValueError as error:
        raise UsageError(f"--set {path}: the value cannot be read: {error}") from None
    return names, parsed["value"] if parsed.keys() == {"value"} else value.strip(), text
