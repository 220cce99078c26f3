"""One training of a board's entry: without evaluations on the way, timed, and measured once at its end."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from axon_core import Interrupted, UsageError, build_trainer, parse_json, to_json, validate
from axon_core.checkpoint import write_text, writing
from axon_core.training import TRAINERS, Recipe, fit, hook
from axon_lab.board.rules import budget_problems, recipe_problems, trained_parameters, trainer_problems
from axon_lab.board.tasks import BoardTask, SeedRun

__all__ = ["MeasuredSeed", "check_recipe", "hardware", "load_recipe", "plugin_versions", "run_seed", "run_seeds"]

_UNNEEDED = ("eval_every", "patience", "save_every", "log")


class MeasuredSeed(SeedRun):
    """A training with what its recipe is worth knowing by."""

    parameters: int
    """Parameters that were trained."""


class _Stopwatch:
    """Measures a training from its start to its last step, so that the evaluation after it is left out."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._begun = (time.monotonic(), time.process_time())

    @hook
    def fit_start(self) -> None:
        """Start."""
        self._begun = (time.monotonic(), time.process_time())

    @hook(tryfirst=True)
    def step_end(self) -> None:
        """Note how long it took until now."""
        wall, cpu = self._begun
        self.seconds, self.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu


def load_recipe(name: str | Path, seed: int | None = None) -> Recipe:
    """Return a recipe by name or file, for the CPU, without what evaluates, saves or logs on the way, and with a seed.

    Raises:
        UnknownKey: no installed plugin has a recipe of that name.
        ConfigError: the recipe breaks a rule.
        UsageError: there is no such file.
    """
    recipe = Recipe.load(name)
    options = {key: value for key, value in recipe.tables["trainer"].items() if key not in _UNNEEDED}
    options |= {"device": "cpu"} | ({} if seed is None else {"seed": seed})
    return Recipe.of({**recipe.tables, "trainer": options}, recipe.name, recipe.source)


def check_recipe(task: BoardTask, recipe: Recipe) -> int:
    """Return how many parameters a recipe trains, after all rules that can be checked without training.

    Raises:
        UsageError: it breaks one, or several; the message names them all.
        ConfigError: a table breaks a rule of its own.
        DataError: the data cannot be read.
    """
    if problems := recipe_problems(task, recipe):
        raise UsageError(f"{recipe.source} breaks the task's rules: {'; '.join(problems)}")
    trainer = build_trainer(recipe)
    if problems := trainer_problems(task, trainer):
        raise UsageError(f"{recipe.source} breaks the task's rules: {'; '.join(problems)}")
    return trained_parameters(trainer)


def run_seed(task: BoardTask, recipe: Recipe, folder: Path) -> MeasuredSeed:
    """Train a recipe, which has its seed, in a new run folder, and measure it once.

    Raises:
        UsageError: the folder is not empty, or the evaluation has no figure of the task's name.
        TrainingError: the training diverged.
        Interrupted: by Ctrl-C.
    """
    trainer, watch = build_trainer(recipe), _Stopwatch()
    try:
        result = fit(trainer, folder, hooks=[watch], recipe={"name": recipe.name, **recipe.tables})
    except Interrupted:
        rule = "its time is measured in one piece, so it is not continued: repeat the command to train it again"
        raise Interrupted(f"interrupted during the training with seed {trainer.config.seed}; {rule}") from None
    found: Any = result.metrics
    if task.evaluation:
        options = validate(TRAINERS[recipe.trainer.type].Evaluation, task.evaluation)
        found = options.evaluate(folder / "model", trainer.config.device)
    if not isinstance(value := found.get(task.metric), int | float):
        raise UsageError(
            f"the evaluation has no number {task.metric!r}, but {', '.join(found)}; mend the task's metric"
        )
    return MeasuredSeed(
        seed=trainer.config.seed,
        value=float(value),
        seconds=round(watch.seconds, 2),
        cpu_seconds=round(watch.cpu_seconds, 2),
        parameters=trained_parameters(trainer),
    )


def run_seeds(
    task: BoardTask, recipe: str | Path, seeds: Sequence[int], folder: Path, tell: Callable[[str], object]
) -> list[MeasuredSeed]:
    """Train a recipe with each seed, in folders `seed-N`; what is finished there already is not run again.

    Raises:
        UsageError: a training took longer than the budget, or `run_seed` has a reason.
        DataError: the data cannot be read.
    """
    results: list[MeasuredSeed] = []
    for number, seed in enumerate(seeds, 1):
        place, file = folder / f"seed-{seed}", folder / f"seed-{seed}.json"
        if file.exists():
            tell(f"seed {seed} ({number} of {len(seeds)}): finished before, in {file}")
            results.append(validate(MeasuredSeed, parse_json(file.read_text("utf-8-sig"))))
            continue
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)  # of a run that was killed, whose time is not known
        tell(f"seed {seed} ({number} of {len(seeds)}): training in {place}")
        found = run_seed(task, load_recipe(recipe, seed), place)
        write_text(file, to_json(found.model_dump(mode="json")))
        tell(
            f"seed {seed}: {task.metric} {found.value:.4f}, {found.seconds:.0f} s, {found.cpu_seconds:.0f} s of the CPU"
        )
        results.append(found)
    if problems := budget_problems(task, [(run.seed, run.seconds, run.cpu_seconds) for run in results]):
        raise UsageError("; ".join(problems))
    return results


def hardware() -> str:
    """Return what this machine computes with: processor, cores, threads, torch's version."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8-sig").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    threads = torch.get_num_threads()
    return (
        f"{name}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def plugin_versions() -> dict[str, str]:
    """Return the versions of the installed plugins and of the core, by distribution."""
    found = {
        dist.name: dist.version
        for dist in metadata.distributions()
        if dist.name == "axon-core" or any(entry.group.startswith("axon.v1.") for entry in dist.entry_points)
    }
    return dict(sorted(found.items()))
