"""The folder of records: tasks, entries and their recipes, found and read.

records/<task>/task.toml              what is measured, and what an entry may not change
records/<task>/NNN-name.toml          an entry: figures by seed, and how its recipe was chosen
records/<task>/recipes/NNN-name.toml  its recipe, which `axon train` takes
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axon_core import ConfigError, UsageError, at, parse_toml, to_json, to_toml, validate
from axon_lab.board.tasks import BoardEntry, BoardTask

if TYPE_CHECKING:  # listing the board imports no torch
    from axon_core.training import Recipe

__all__ = ["EntryFile", "TaskFolder", "entry_text", "find_task", "read_tasks", "recipe_digest"]

_ENTRY = re.compile(r"\d{3}-[a-z0-9]+(-[a-z0-9]+)*")
_FREE = frozenset(
    {"seed", "eval_every", "save_every", "keep_checkpoints", "checkpoint_in_background", "log", "prompt", "device"}
)
"""Settings of a trainer that change no figure of the board, which has seeds of its own and evaluates at the end."""


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
