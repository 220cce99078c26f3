"""What a comparison is to do: read from the command line, kept in `design.json`, and compared with what is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from axon_core import Config, Recipe, UsageError, parse_toml, to_json
from axon_core.training import alternatives
from axon_lab.compare.results import Axis, Budget, LeftOut

__all__ = [
    "ALL",
    "Design",
    "FittingCell",
    "choices_of",
    "differences",
    "expand",
    "parse_axes",
    "parse_budget",
    "parse_seeds",
]

ALL = "*"
"""The value that stands for every registered part that fits."""
_SEED, _STEPS = "trainer.seed", "trainer.steps"
_UNITS = ("steps", "seconds", "flops", "tokens")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}


class FittingCell(Config):
    """A choice of values that fits, and what is known of it before it is trained."""

    values: tuple[str, ...]
    """A value for each axis, in their order."""
    steps: PositiveInt | None = None
    """Updates of each of its runs; None if they follow from its pace, which is measured first."""
    parameters: NonNegativeInt
    """Trainable parameters."""
    flops: NonNegativeFloat | None = None
    """Floating-point operations of an update; None if they could not be counted."""
    cache_bytes_per_token: NonNegativeFloat | None = None
    """Bytes a token of a text keeps in the decoding cache; None if the model generates no text."""


class Design(Config):
    """Everything that decides what a comparison's numbers mean; the rest, such as how many run at once, does not."""

    format: Literal[1] = 1
    """The version of this file."""
    recipe: str
    """The recipe's name."""
    tables: dict[str, Any]
    """The recipe's tables, before anything is changed."""
    overrides: tuple[str, ...] = ()
    """What `--set` changes for all runs."""
    asked: tuple[Axis, ...]
    """What is varied, as it was written."""
    axes: tuple[Axis, ...] = ()
    """The same, with every registered part in the place of `*`."""
    seeds: tuple[int, ...]
    """The seeds of the runs of each cell."""
    budget: Budget | None = None
    """What each run may use up; None: the recipe's own steps."""
    evaluations: PositiveInt = 5
    """How often a run is evaluated, at equal distances, the end included."""
    metric: str = "loss"
    """What is compared: a name of the trainer's evaluation."""
    unit: str = ""
    """The metric's unit, for sentences."""
    higher_is_better: bool = False
    """Whether more of it is better."""
    counted: str = "tokens"
    """What the speed of training counts: the trainer's unit."""
    cells: tuple[FittingCell, ...] = ()
    """All cells that fit, the first axis slowest."""
    left_out: tuple[LeftOut, ...] = ()
    """All others."""
    hardware: str = ""
    """What it runs on."""

    def changes(self, values: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides of a cell: those of all runs, then its values."""
        chosen = (f"{axis.path}={value}" for axis, value in zip(self.axes, values, strict=True))
        return (*self.overrides, *chosen)

    def recipe_of(self, values: Sequence[str], *further: str) -> Recipe:
        """Return the recipe of a cell, with further overrides. Raises `ConfigError` or `UsageError` as `Recipe.of`."""
        return Recipe.of(self.tables, self.recipe, self.recipe, (*self.changes(values), *further))

    def sets(self, path: str) -> bool:
        """Return whether the command line sets or varies a field."""
        return any(path == _path(text) for text in (*self.overrides, *(f"{axis.path}=" for axis in self.asked)))


def parse_axes(texts: Sequence[str], overrides: Sequence[str]) -> tuple[Axis, ...]:
    """Read `--vary A.B=v1,v2`: commas within brackets or quotes are part of a value.

    Raises:
        UsageError: an axis is malformed, empty, or has a value twice; two are for one place; `--set` is for the same
            place; or it is the seed, which `--seeds` chooses.
    """
    if not texts:
        raise UsageError("nothing is varied; give at least one axis, as in --vary model.attention.type=MHA,GQA")
    axes = [_axis(text) for text in texts]
    places = [place(axis.path) for axis in axes]
    for axis, at in zip(axes, places, strict=True):
        if places.count(at) > 1:
            raise UsageError(f"--vary {axis.path}: this place is varied twice; write all its values in one --vary")
        if at in {place(_path(text)) for text in overrides}:
            raise UsageError(f"--vary {axis.path}: --set sets the same place for all runs; leave one of them out")
    for path in [*(axis.path for axis in axes), *map(_path, overrides)]:
        if path == _SEED:
            raise UsageError(f"{_SEED} is chosen by --seeds or --seed-list, for all cells alike; leave it out")
    return tuple(axes)


def place(path: str) -> str:
    """Return where a field stands; a part and its `type` are one place.

    >>> place("model.attention.type"), place("trainer.steps")
    ('model.attention', 'trainer.steps')
    """
    return path.removesuffix(".type")


def _path(text: str) -> str:
    return text.partition("=")[0].strip()


def _axis(text: str) -> Axis:
    path, equals, listed = text.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        raise UsageError(f"--vary takes table.field=value,value, got {text!r}")
    values = [value.strip() for value in _split(listed)]
    if not all(values):
        raise UsageError(f"--vary {path}: a value is empty; write them as in --vary {path}=a,b")
    seen: dict[str, str] = {}
    for value in values:
        key = to_json(_value(value), sort_keys=True, default=str)
        if key in seen:
            raise UsageError(f"--vary {path}: the value {value!r} stands there twice; leave one out")
        seen[key] = value
    if ALL in values and len(values) > 1:
        raise UsageError(f"--vary {path}: '*' stands for all parts, so that nothing can stand beside it")
    return Axis(path=path, values=tuple(values))


def _split(text: str) -> Iterator[str]:
    """Yield what stands between the commas that are outside of brackets and quotes."""
    closing, quote, begun = list[str](), "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _BRACKETS:
            closing.append(_BRACKETS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            yield text[begun:i]
            begun = i + 1
    yield text[begun:]


def _value(text: str) -> Any:
    """Return a value as an override reads it, so that `0.1` and `0.10` are seen to be the same."""
    try:
        parsed = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def parse_seeds(number: int | None, listed: str | None) -> tuple[int, ...]:
    """Return the seeds: 0, 1, … of `--seeds`, by default three, or those of `--seed-list`.

    Raises:
        UsageError: both are given, or a seed is not a number of 0 or more, or stands there twice.
    """
    if listed is None:
        number = 3 if number is None else number
        if number < 1:
            raise UsageError(f"--seeds must be at least 1, got {number}")
        return tuple(range(number)) if number <= 1_000_000 else ()
    if number is not None:
        raise UsageError("--seeds and --seed-list are two ways to say the same; give one of them")
    seeds = [text.strip() for text in listed.split(",")]
    if wrong := [text for text in seeds if not (text.isascii() and text.isdecimal() and len(text) < 19)]:
        raise UsageError(f"--seed-list takes numbers of at least 0, as in 0,1,2; got {wrong[0]!r}")
    if len({*map(int, seeds)}) < len(seeds):
        raise UsageError(f"--seed-list has a seed twice, which would be the same run again; got {listed}")
    return tuple(map(int, seeds))


def parse_budget(texts: Sequence[str], overrides: Sequence[str], axes: Sequence[Axis]) -> Budget | None:
    """Read `--budget UNIT=N`.

    Raises:
        UsageError: it is malformed; there are two, or the steps are set or varied too.
    """
    if not texts:
        return None
    if len(texts) > 1 or "," in texts[0]:
        raise UsageError(f"a comparison has one budget, which is the same for all runs; got {' and '.join(texts)}")
    unit, _, written = texts[0].partition("=")
    if unit not in _UNITS:
        raise UsageError(f"--budget takes {', '.join(_UNITS[:-1])} or {_UNITS[-1]}, as in steps=60; got {texts[0]!r}")
    try:
        amount = float(written)
    except ValueError:
        amount = math.nan
    if not (0 < amount < math.inf) or (unit != "seconds" and amount != int(amount)):
        kind = "a number" if unit == "seconds" else "a whole number"
        raise UsageError(f"--budget {unit} takes {kind} above 0, got {written!r}")
    if any(path == _STEPS for path in [*map(_path, overrides), *(axis.path for axis in axes)]):
        raise UsageError(f"--budget {texts[0]} decides how many steps a run has, and so does {_STEPS}; leave one out")
    return Budget(unit=unit, amount=amount)


def expand(recipe: Recipe, axis: Axis) -> Axis:
    """Return an axis with every registered part in the place of `*`: the recipe's own first, then by name.

    Raises:
        UsageError: no part of the recipe stands there.
    """
    if axis.values != (ALL,):
        return axis
    if found := alternatives(recipe.tables, place(axis.path).split(".")):
        return Axis(path=axis.path, values=found)
    raise UsageError(
        f"--vary {axis.path}='*': no part of {recipe.name} stands there, whose alternatives could be looked up; name "
        "the part's field, as in model.attention.type, or write the values"
    )


def choices_of(axes: Sequence[Axis]) -> Iterator[tuple[str, ...]]:
    """Yield every choice of values, the first axis slowest."""
    return product(*(axis.values for axis in axes))


def differences(old: Design, new: Design) -> list[str]:
    """Return in words what distinguishes what is asked, `new`, from the comparison that a folder holds, `old`."""
    named: Mapping[str, tuple[Any, Any]] = {
        "the recipe": (old.recipe, new.recipe),
        "--vary": (_axes(old), _axes(new)),
        "--set": (list(old.overrides), list(new.overrides)),
        "the seeds": (list(old.seeds), list(new.seeds)),
        "--budget": (_budget(old), _budget(new)),
        "--evaluations": (old.evaluations, new.evaluations),
        "--metric": (old.metric, new.metric),
    }
    found = [f"{name} ({_brief(was)} there, {_brief(now)} here)" for name, (was, now) in named.items() if was != now]
    if old.recipe == new.recipe and old.tables != json.loads(to_json(new.tables, default=str)):
        found.append("what the recipe says, which has changed since")
    return found


def _axes(design: Design) -> list[str]:
    return [f"{axis.path}={','.join(axis.values)}" for axis in design.asked]


def _budget(design: Design) -> str:
    return "none" if design.budget is None else f"{design.budget.unit}={design.budget.amount:g}"


def _brief(value: Any) -> str:
    words = " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    return words if len(words) <= 80 else f"{words[:77]}…"
