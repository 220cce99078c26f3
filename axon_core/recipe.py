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

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, cast

from pydantic import Field

from axon_core import config
from axon_core.config import Spec, at, validate
from axon_core.errors import ConfigError, UsageError
from axon_core.interfaces.trainer import Trainer
from axon_core.registry import TRAINERS

__all__ = ["Recipe", "override"]

Table = dict[str, Any]


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

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read an installed recipe by name, or a TOML file by path, and apply `overrides` like `"a.b=c"`.

        Raises:
            UnknownKey: no installed plugin brings a recipe of that name.
            ConfigError: the file is not TOML, or a table is missing or misspelt.
            UsageError: there is no such file, or an override is malformed.
        """
        path = Path(name)
        if path.suffix != ".toml" and not path.is_file():
            from axon_core.paper import recipe

            path = recipe(str(name)).path
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from None
        except ValueError as error:  # not TOML, or not UTF-8
            raise ConfigError([((), f"not valid TOML: {error}")], str(path)) from None
        return cls.of(tables, path.stem, str(path), overrides)

    @classmethod
    def of(cls, tables: Mapping[str, Any], name: str, source: str, overrides: Iterable[str] = ()) -> Self:
        """Make a recipe of its tables.

        Raises:
            ConfigError: a table or an override breaks a rule; the message names `source` and the overrides.
        """
        overrides = list(overrides)
        if overrides:
            source = f"{source} with {' '.join(f'--set {text}' for text in overrides)}"
        with at(source=source):
            result = override(tables, overrides)
            if reserved := result.keys() & {"name", "source"}:
                raise ConfigError([((key,), "a recipe is named after its file") for key in sorted(reserved)])
            return validate(cls, {**result, "name": name, "source": source})

    @property
    def tables(self) -> Table:
        """The recipe's contents as `of` takes them."""
        return self.model_dump(mode="json", exclude={"name", "source"})

    def build(self, saved: Path | None = None) -> Trainer:
        """Build the trainer; `saved` is an earlier export of the same recipe (see `Trainer.from_recipe`).

        Raises:
            ConfigError: a table breaks a rule; the message names the file and the place in it.
            DataError: the data cannot be used.
        """
        with at(source=self.source):
            return TRAINERS[self.trainer.type].from_recipe(self, saved)


def override(tables: Mapping[str, Any], overrides: Iterable[str]) -> Table:
    """Return a copy of `tables` with each `"a.b=c"` set; a value that is not TOML is a string.

    Setting the `type` of a component to another value drops its other options, because they belong to the old
    component. Types are set first, so the order of `overrides` does not matter.

    >>> override({"model": {"norm": {"type": "a", "eps": 1}}}, ["model.norm.x=2", "model.norm.type=b"])
    {'model': {'norm': {'type': 'b', 'x': 2}}}

    Raises:
        UsageError: an override is not of that form, or goes into something that is no table.
    """
    result = cast(Table, _copy(tables))
    parsed = [_parse(text) for text in overrides]
    # Outer types first: they drop what is inside.
    for path, value, text in sorted(parsed, key=lambda item: (item[0][-1] != "type", len(item[0]))):
        table = result
        for name in path[:-1]:
            inner = table.get(name, {})
            if isinstance(inner, str):  # the short form of a component without options
                inner = {"type": inner}
            if not isinstance(inner, dict):
                raise UsageError(f"--set {text}: {name} is the value {inner!r}, not a table with fields")
            table[name] = table = cast(Table, inner)
        if path[-1] == "type" and table.get("type", value) != value:
            table.clear()
        table[path[-1]] = value
    return result


def _parse(text: str) -> tuple[list[str], Any, str]:
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set takes table.field=value, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    return names, parsed["value"] if parsed.keys() == {"value"} else value.strip(), text


def _copy(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copy(value) for key, value in cast(Mapping[str, Any], node).items()}
    return node
