"""The paper card `paper.toml` and the recipes beside it, found without importing their plugin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, StringConstraints, model_validator

from axon_core.config import Config, at, validate
from axon_core.documents import parse_toml
from axon_core.errors import AmbiguousKey, ConfigError, PluginLoadError, UnknownKey
from axon_core.registry.discovery import Entry, discover
from axon_core.registry.packages import CARD, package_folders
from axon_core.registry.suggest import unknown_name

__all__ = [
    "Card",
    "Claim",
    "Equation",
    "InstalledRecipe",
    "LookUp",
    "Paper",
    "cards",
    "find_card",
    "find_recipe",
    "read_card",
    "recipes",
]

StrippedText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Rule = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"\S\s+\S")]  # words: no number is one
Tolerance = Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] | Rule
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class Claim(Config):
    """One statement of a paper that a function of its plugin can check."""

    id: Identifier
    """Its name within the paper, in lower case: `relative-position`."""
    where: StrippedText
    """Where the paper states it: `Section 3.2.2, Eq. 16`."""
    text: StrippedText
    """The statement, in one sentence."""
    paper: StrippedText
    """The number or direction that the paper reports, or `exact` for a mathematical identity."""
    check: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]
    """The function that checks it, `"package.module:function"`."""
    scale: Literal["exact", "scaled", "full"]
    """The scale of the check: a proof or identity, a scaled-down run, or a run of the paper's size."""
    budget_s: PositiveFloat
    """Longest duration on two CPU cores, in seconds."""
    tolerance: Tolerance | None = None
    """What difference from the paper still counts as reproduced, as the check has it.

    A number is the largest difference that the check accepts, in the unit of the value that the paper reports; a text
    is the rule in words. Without it, the check's docstring says it.
    """


class LookUp(Config):
    """What the author of a plugin has to look up in the paper before it is a claim."""

    id: Identifier
    """Its name within the paper, which the claim will have: `main-result`."""
    what: StrippedText
    """What to look for, in one sentence."""


class Equation(Config):
    """An equation of a paper, as its page shows it."""

    where: StrippedText
    """Where the paper states it: `Section 3.2.1, Eq. 1`."""
    latex: StrippedText
    """The equation in LaTeX, on one line."""
    text: StrippedText
    """What it says, in one sentence."""


class Paper(Config):
    """A paper's card: its description, and the claims that can be checked."""

    id: Identifier
    """Its short name, equal to its key in the entry-point group `axon.v1.paper`."""
    title: StrippedText
    """Its title."""
    authors: tuple[StrippedText, ...] = Field(min_length=1)
    """Its authors, in the paper's order."""
    year: int = Field(ge=1900, le=2200)
    """The year of its publication."""
    arxiv: Annotated[str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")]
    """Its arXiv id without the version: `1706.03762`."""
    summary: StrippedText
    """Its result, in one sentence."""
    equation: tuple[Equation, ...] = ()
    """The equations that its plugin computes, the main one first."""
    claim: tuple[Claim, ...] = ()
    """The claims that can be checked."""
    look_up: tuple[LookUp, ...] = ()
    """What is to be looked up and then written as a claim; a card that has any is a draft."""
    command: dict[str, StrippedText] = Field(default_factory=dict)
    """Help of the plugin's commands in `axon --help`, one sentence each, by name."""

    @model_validator(mode="after")
    def _distinct_claims(self) -> Self:
        ids = [one.id for one in (*self.claim, *self.look_up)]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"each claim needs a different id, but {', '.join(twice)} is given more than once")
        return self


@dataclass(frozen=True, slots=True)
class Card:
    """An installed paper: its card, or the reason why it cannot be read."""

    entry: Entry
    """The entry point that names it."""
    paper: Paper | None
    """The card, or None if it is damaged."""
    error: ConfigError | PluginLoadError | None = None
    """The error of a damaged card."""


@dataclass(frozen=True, slots=True)
class InstalledRecipe:
    """A recipe that an installed plugin provides."""

    name: str
    """The name that its command takes: the file name without `.toml`."""
    distribution: str
    """The plugin that provides it."""
    version: str
    """The plugin's version."""
    path: Path
    """The file."""
    summary: str
    """Its `summary`, or the reason why the file cannot be read."""
    command: str = "train"
    """The command that takes it."""

    @property
    def qualified(self) -> str:
        """The name that no other plugin can use, `"distribution:name"`."""
        return f"{self.distribution}:{self.name}"

    @property
    def tables(self) -> dict[str, Any]:
        """The contents of the file. Raises `ConfigError` if it cannot be read."""
        with at(source=str(self.path)):
            return _toml(self.path)


def cards() -> tuple[Card, ...]:
    """Return the card of every installed paper; a damaged card does not affect the others."""
    return tuple(map(_card, discover().entries("paper")))


def find_card(name: str) -> Card:
    """Return the card of the paper `name`, readable or not. Raises `UnknownKey` or `AmbiguousKey`."""
    entries = discover().entries("paper")
    found = [entry for entry in entries if name in (entry.key, entry.qualified)]
    if not found:
        hint = "`axon search` finds papers that are not installed"
        raise UnknownKey(unknown_name("paper", name, {e.key: e.source for e in entries}, hint))
    if len(found) > 1:
        names = " or ".join(repr(entry.qualified) for entry in found)
        raise AmbiguousKey(f"{len(found)} plugins offer the paper {name!r}; choose one: {names}")
    return _card(found[0])


def read_card(entry: Entry) -> Paper:
    """Read the card beside the package that `entry` names.

    Raises:
        PluginLoadError: the package or the card does not exist.
        ConfigError: the card breaks a rule; the message names file and field.
    """
    for folder in package_folders(entry):
        path = folder / CARD
        if path.is_file():
            with at(source=str(path)):
                paper = validate(Paper, _toml(path))
                if paper.id != entry.key:
                    raise ConfigError([(("id",), f"must be {entry.key!r}, as in the entry point; got {paper.id!r}")])
            return paper
    raise PluginLoadError(
        f"the paper {entry.key!r} of {entry.source} has no card: there is no paper.toml beside the package "
        f"{entry.target}. Reinstall it: pip install --force-reinstall {entry.distribution}"
    )


def recipes() -> tuple[InstalledRecipe, ...]:
    """Return the recipes in the folder `recipes` of every installed paper's package, sorted by name."""
    found = [recipe for entry in discover().entries("paper") for recipe in _recipes_of(entry)]
    return tuple(sorted(found, key=lambda r: (r.name, r.distribution)))


def find_recipe(name: str) -> InstalledRecipe:
    """Return the installed recipe `name`. Raises `UnknownKey` or `AmbiguousKey`."""
    known = recipes()
    found = [r for r in known if name in (r.name, r.qualified)]
    if not found:
        raise UnknownKey(unknown_name("recipe", name, {r.name: r.distribution for r in known}))
    if len(found) > 1:
        names = " or ".join(repr(r.qualified) for r in found)
        raise AmbiguousKey(f"{len(found)} plugins have a recipe {name!r}; choose one: {names}")
    return found[0]


def _card(entry: Entry) -> Card:
    try:
        return Card(entry, read_card(entry))
    except (ConfigError, PluginLoadError) as error:
        return Card(entry, None, error)


def _recipes_of(entry: Entry) -> list[InstalledRecipe]:
    try:
        folders = package_folders(entry)
    except PluginLoadError:
        return []  # `axon papers` and `axon doctor` report it
    return [
        InstalledRecipe(path.stem, entry.distribution, entry.version, path, *_summary(path))
        for folder in folders
        for path in folder.glob("recipes/*.toml")
    ]


def _summary(path: Path) -> tuple[str, str]:
    """Return a recipe's summary, and the command it is for."""
    try:
        tables = _toml(path)
    except ConfigError as error:
        return f"damaged: {error}", "train"
    return str(tables.get("summary", "")), str(tables.get("command", "train"))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError([((), f"cannot be read as TOML: {error}")]) from error
