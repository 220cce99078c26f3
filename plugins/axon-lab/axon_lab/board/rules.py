"""The rules of the board: what an entry may not change, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from axon_core import Trainer
from axon_core.training import Recipe
from axon_lab.board.folders import TaskFolder, recipe_digest
from axon_lab.board.tasks import BoardEntry, BoardTask

__all__ = ["budget_problems", "entry_problems", "recipe_problems", "trained_parameters", "trainer_problems"]


def recipe_problems(task: BoardTask, recipe: Recipe) -> list[str]:
    """Return which rules a recipe breaks, as far as its tables say: data, trainer, and no saved weights."""
    problems: list[str] = []
    given, wanted = _expanded(recipe.data), _expanded(task.data)
    if given != wanted:
        name = next(key for key in {**wanted, **given} if given.get(key) != wanted.get(key))
        problems.append(
            f"the data are the task's: data.{name} must be {_shown(wanted.get(name))}, got {_shown(given.get(name))}"
        )
    if (kind := task.trainer.get("type")) not in (None, recipe.trainer.type):
        problems.append(f"the trainer is the task's: trainer.type must be {kind!r}, got {recipe.trainer.type!r}")
    problems += [
        f"an entry starts from no saved weights, but {'.'.join(place)} names some; describe a new model by its `type`"
        for place in _saved(recipe.model, ("model",))
    ]
    return problems


def trainer_problems(task: BoardTask, trainer: Trainer) -> list[str]:
    """Return which rules a recipe breaks that show when its trainer is built: its settings and its size."""
    problems: list[str] = []
    for name, wanted in task.trainer.items():
        if name == "type":
            continue
        found = getattr(trainer.config, name, None)
        if found is None:  # left to the trainer, which follows the model or the data
            found = getattr(trainer, name, None)
        if found != wanted:
            problems.append(f"trainer.{name} is the task's: it must be {_shown(wanted)}, got {_shown(found)}")
    size = trained_parameters(trainer)
    if task.parameters is not None and size > task.parameters:
        problems.append(f"a model has at most {task.parameters:,} parameters, got {size:,}; make it smaller")
    return problems


def entry_problems(folder: TaskFolder, entry: BoardEntry, recipe: Recipe) -> list[str]:
    """Return which rules an entry's file breaks: its recipe is unchanged, and its time within the budget."""
    problems: list[str] = []
    if recipe_digest(recipe) != entry.digest:
        problems.append(
            "the recipe is not the one that was run: its digest differs from the entry's. Restore it, or enter the "
            "changed recipe as another entry"
        )
    times = [(run.seed, run.seconds, run.cpu_seconds) for run in entry.run]
    times += [(seed, entry.spread.seconds, None) for seed in entry.spread.seeds] if entry.spread else []
    return problems + budget_problems(folder.task, times)


def budget_problems(task: BoardTask, times: Sequence[tuple[int, float, float | None]]) -> list[str]:
    """Return which trainings took too long, each given by seed, seconds, and those of the processor if known."""
    if task.seconds is None:
        return []
    most = task.seconds * task.cores
    problems: list[str] = []
    for seed, seconds, cpu in times:
        if cpu is not None and cpu > most:
            problems.append(
                f"a training has {most:,.0f} seconds of the processor, {task.seconds:,.0f} on {task.cores} cores, but "
                f"that with seed {seed} took {cpu:,.0f}; train fewer steps or a smaller model"
            )
        elif cpu is None and seconds > task.seconds:
            problems.append(
                f"a training has {task.seconds:,.0f} seconds on {task.cores} cores, but that with seed {seed} took "
                f"{seconds:,.0f}; train fewer steps or a smaller model"
            )
    return problems


def trained_parameters(trainer: Trainer) -> int:
    """Return how many numbers training changes; shared ones count once."""
    found = {p for role in trainer.trainable for p in trainer.models[role].parameters() if p.requires_grad}
    return sum(parameter.numel() for parameter in found)


def _saved(table: Mapping[str, Any], place: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return where a table of models names a saved one, which has `init`."""
    found = [(*place, "init")] if "init" in table else []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += _saved(cast("Mapping[str, Any]", value), (*place, name))
    return found


def _expanded(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table in which the short form of a part, its name, is the long one."""
    value = table.get("tokenizer")
    return {**table, "tokenizer": {"type": value}} if isinstance(value, str) else dict(table)


def _shown(value: Any) -> str:
    return "left out" if value is None else repr(value)
