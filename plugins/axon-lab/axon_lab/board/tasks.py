"""The folder of records: tasks, entries and their recipes, read and checked.

records/<task>/task.toml              what is measured, and what an entry may not change
records/<task>/NNN-name.toml          an entry: figures by seed, and how its recipe was chosen
records/<task>/recipes/NNN-name.toml  its recipe, which `axon train` takes
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from axon_core import Config, ConfigError, UsageError, at, parse_toml, to_json, to_toml, validate

if TYPE_CHECKING:  # listing the board imports no torch
    from axon_core.training import Recipe

__all__ = [
    "BoardEntry",
    "BoardTask",
    "EntryFile",
    "Reference",
    "SeedRun",
    "SeedSpread",
    "Selection",
    "TaskFolder",
    "entry_text",
    "find_task",
    "read_tasks",
    "recipe_digest",
]

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
_ENTRY = re.compile(r"\d{3}-[a-z0-9]+(-[a-z0-9]+)*")
_FREE = frozenset({"seed", "eval_every", "save_every", "keep_checkpoints", "checkpoint_in_background", "log", "prompt"})
"""Settings of a trainer that change no figure of the board, which has seeds of its own and evaluates at the end."""


class Reference(Config):
    """A figure to compare with, that no recipe of this repository reached."""

    title: Line
    """What it is."""
    value: float
    """Its figure."""
    source: Line
    """Where the figure is from."""


class BoardTask(Config):
    """What is measured, and what an entry may not change."""

    title: Line
    """Its name for people."""
    summary: Line
    """What is learned from what, in one sentence."""
    metric: Line
    """The name of the figure in the evaluation: `loss`."""
    unit: Line
    """Its unit: `nats per character`."""
    higher_is_better: bool = False
    """Whether more of it is better."""
    tolerance: NonNegativeFloat
    """How far a figure may be from the recorded one of the same seed when an entry is run again, in the unit: other
    processors and versions round differently."""
    parameters: PositiveInt | None = None
    """The most parameters that a recipe may train; left out, any number."""
    seconds: PositiveFloat | None = None
    """The longest training, from the first update to the last, on `cores` cores; left out, the steps are the budget."""
    cores: PositiveInt = 2
    """Cores that the `seconds` are for. Measured are seconds of the processor, all threads together, of which there
    are `seconds · cores`: they do not depend on what else a machine does."""
    seeds: PositiveInt = 3
    """The fewest seeds that a new entry needs."""
    data: dict[str, Any]
    """The recipe's table `[data]`, the whole of it."""
    trainer: dict[str, Any]
    """Settings of the trainer that are given, by name: `type`, and such as steps, batch and what is evaluated."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Options of the trainer's own evaluation of a saved model, as of `axon evaluate RUN --src …`, if the figure is
    from there. Left out, it is from the evaluation at the end of training, of the part held out."""
    reference: tuple[Reference, ...] = ()
    """What others reach."""


class SeedRun(Config):
    """One training of an entry."""

    seed: int
    """Its seed."""
    value: float
    """The figure."""
    seconds: NonNegativeFloat
    """Seconds of training by the clock, evaluation left out."""
    cpu_seconds: NonNegativeFloat | None = None
    """Seconds of the processor, all threads together; left out where nobody measured them."""


class SeedSpread(Config):
    """What is known of trainings whose figures by seed were not kept."""

    seeds: tuple[int, ...] = Field(min_length=1)
    """Their seeds."""
    mean: float
    """The mean figure."""
    lowest: float
    """The lowest one."""
    highest: float
    """The highest one."""
    seconds: NonNegativeFloat
    """Seconds of one training by the clock."""


class Selection(Config):
    """How the recipe was chosen."""

    part: Literal["validation", "none", "held-out", "unknown"]
    """What candidates were compared on: a validation part that is cut from the training part, nothing, or, in entries
    from before the rule, the held-out part, or what nobody recorded."""
    how: Line
    """The choice in a sentence or two: which candidates, which measure."""
    candidates: NonNegativeInt | None = None
    """How many recipes were compared; left out where nobody counted."""
    seeds: tuple[int, ...] = ()
    """Seeds that took part in the choice."""


class BoardEntry(Config):
    """A recipe with its figures."""

    title: Line
    """What it is called."""
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """The day of its runs."""
    commit: Line
    """The commit that they were made with."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The checksum of the recipe (`recipe_digest`), by which an edit is noticed."""
    changed: Line
    """What changed against the entry before."""
    hardware: Line
    """What it ran on."""
    parameters: PositiveInt
    """Parameters that are trained."""
    plugins: dict[str, str] = Field(default_factory=dict)
    """Versions of the installed plugins, by distribution."""
    selection: Selection
    """How its recipe was chosen."""
    run: tuple[SeedRun, ...] = ()
    """Its trainings."""
    spread: SeedSpread | None = None
    """Instead of `run`, in entries from before the board, what was kept of them."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.run) is (self.spread is not None):
            raise ValueError("give the trainings as [[run]], one for each seed, or else their spread")
        return self

    @property
    def mean(self) -> float:
        """The mean figure over the seeds, which ranks the entry."""
        return self.spread.mean if self.spread else mean(run.value for run in self.run)

    @property
    def seconds(self) -> float:
        """The mean seconds of a training by the clock."""
        return self.spread.seconds if self.spread else mean(run.seconds for run in self.run)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its trainings."""
        return self.spread.seeds if self.spread else tuple(run.seed for run in self.run)

    def interval(self, seed: int) -> tuple[float, float]:
        """Return the lowest and the highest figure that a seed may have had; mostly they are one."""
        if self.spread:
            return self.spread.lowest, self.spread.highest
        value = next(run.value for run in self.run if run.seed == seed)
        return value, value

    @property
    def figures(self) -> str:
        """The figures by seed, in words."""
        if self.spread:
            seeds = ", ".join(map(str, self.spread.seeds))
            return f"{self.spread.lowest:.4f} to {self.spread.highest:.4f} (seeds {seeds})"
        return ", ".join(f"{run.value:.4f} (seed {run.seed})" for run in self.run)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said against its figure, in words."""
        remarks: list[str] = []
        if self.selection.part == "held-out":
            remarks.append("chosen on the held-out part")
        elif self.selection.part == "unknown":
            remarks.append("how it was chosen is not recorded")
        if both := sorted({*self.seeds} & {*self.selection.seeds}):
            words = ", ".join(map(str, both))
            remarks.append(f"seed{'s' if len(both) > 1 else ''} {words} took part in the choice")
        return tuple(remarks)


@dataclass(frozen=True)
class EntryFile:
    """An entry on disk.

    Attributes:
        name: its file's name without `.toml`, as `002-value-embeddings`.
        entry: what the file says.
        recipe: the path of its recipe.
    """

    name: str
    entry: BoardEntry
    recipe: Path


@dataclass(frozen=True)
class TaskFolder:
    """A task with its entries, in the order of their numbers.

    Attributes:
        name: the folder's name.
        path: the folder.
        task: the task.
        entries: its entries.
    """

    name: str
    path: Path
    task: BoardTask
    entries: tuple[EntryFile, ...]

    def find(self, name: str | None = None) -> EntryFile:
        """Return the entry of this name or number, or the record. Raises `UsageError` if there is none."""
        if name is None:
            if (record := self.record) is None:
                raise UsageError(f"the task {self.name} has no entry yet; make one with `axon board enter {self.name}`")
            return record
        found = [one for one in self.entries if one.name == name or one.name.partition("-")[0] == name.zfill(3)]
        if not found:
            known = ", ".join(one.name for one in self.entries) or "none"
            raise UsageError(f"the task {self.name} has no entry {name!r}; it has: {known}")
        return found[0]

    @property
    def record(self) -> EntryFile | None:
        """The best entry; of several as good, the first."""
        history = self.history
        return history[-1] if history else None

    @property
    def history(self) -> tuple[EntryFile, ...]:
        """The entries that were records when they were made, from the first to the standing one."""
        records: list[EntryFile] = []
        for one in self.entries:
            if not records or self.is_better(one.entry.mean, records[-1].entry.mean):
                records.append(one)
        return tuple(records)

    def is_better(self, value: float, other: float) -> bool:
        """Whether a figure beats another."""
        return value > other if self.task.higher_is_better else value < other


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of what a recipe trains: its tables without seed, summary and what only saves or logs."""
    tables = {name: table for name, table in recipe.tables.items() if name not in ("summary", "swaps")}
    tables["trainer"] = {name: value for name, value in tables["trainer"].items() if name not in _FREE}
    return hashlib.sha256(to_json(tables, sort_keys=True).encode()).hexdigest()


def read_tasks(folder: Path) -> tuple[TaskFolder, ...]:
    """Return all tasks in a folder of records, by name.

    Raises:
        UsageError: there is no such folder, or no task in it.
        ConfigError: a file breaks a rule; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"there are no records at {folder}; run it in Axon's repository, or name them with --records")
    found = sorted(file.parent for file in folder.glob("*/task.toml"))
    if not found:
        raise UsageError(f"{folder} has no tasks, which are folders with a task.toml; name another with --records")
    return tuple(map(_task, found))


def find_task(folder: Path, name: str) -> TaskFolder:
    """Return the task of this name. Raises as `read_tasks` does, and `UsageError` for an unknown name."""
    tasks = {task.name: task for task in read_tasks(folder)}
    if name not in tasks:
        raise UsageError(f"there is no task {name!r} in {folder}; it has: {', '.join(tasks)}")
    return tasks[name]


def entry_text(entry: BoardEntry) -> str:
    """Return the file of an entry."""
    tables = entry.model_dump(mode="json", exclude_defaults=True)
    runs = tables.pop("run")
    return "\n\n".join([to_toml(tables), *(f"[[run]]\n{to_toml(run)}" for run in runs)]) + "\n"


def _task(folder: Path) -> TaskFolder:
    task = _read(folder / "task.toml", BoardTask)
    files = sorted(file for file in folder.glob("*.toml") if file.name != "task.toml")
    entries: list[EntryFile] = []
    for file in files:
        if not _ENTRY.fullmatch(file.stem):
            rule = "an entry is named by three digits and lower-case words, as in 002-value-embeddings.toml"
            raise ConfigError([((), rule)], str(file))
        entry = _read(file, BoardEntry)
        entries.append(EntryFile(file.stem, entry, folder / "recipes" / file.name))
    return TaskFolder(folder.name, folder, task, tuple(entries))


def _read(file: Path, kind: type[Any]) -> Any:
    with at(source=str(file)):
        try:
            tables = parse_toml(file.read_text("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ConfigError([((), f"cannot be read as TOML: {error}")]) from error
        return validate(kind, tables)
