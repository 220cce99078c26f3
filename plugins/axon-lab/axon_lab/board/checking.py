"""An entry is run again, and its figures are compared with the recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import NonNegativeFloat

from axon_core import Config, UsageError
from axon_lab.board.folders import EntryFile, TaskFolder
from axon_lab.board.rules import budget_problems, entry_problems
from axon_lab.board.running import check_recipe, load_recipe, run_seed

__all__ = ["CheckedEntry", "CheckedSeed", "check_entry"]


class CheckedSeed(Config):
    """A seed's figure, recorded and measured."""

    seed: int
    """The seed."""
    lowest: float
    """The entry's figure, or the lowest that it may have been."""
    highest: float
    """The same, or the highest."""
    measured: float
    """That of the run now."""
    seconds: NonNegativeFloat
    """Seconds of training by the clock."""
    cpu_seconds: NonNegativeFloat
    """Seconds of the processor, all threads together."""
    agrees: bool
    """Whether the two differ by at most the task's tolerance."""

    @property
    def difference(self) -> float:
        """How far the measured figure is above the recorded one, or, below 0, under it."""
        return self.measured - min(max(self.measured, self.lowest), self.highest)


class CheckedEntry(Config):
    """What the check of an entry found."""

    task: str
    """The task."""
    entry: str
    """The entry."""
    problems: tuple[str, ...]
    """The rules that it breaks; what breaks one is not trained."""
    remarks: tuple[str, ...]
    """What is to be said against its figure though it keeps today's rules."""
    seeds: tuple[CheckedSeed, ...] = ()
    """The trainings."""

    @property
    def holds(self) -> bool:
        """Whether the entry keeps the rules and its figures were measured again."""
        return not self.problems and bool(self.seeds) and all(seed.agrees for seed in self.seeds)


def check_entry(
    folder: TaskFolder, file: EntryFile, seeds: Sequence[int], runs: Path, tell: Callable[[str], object]
) -> CheckedEntry:
    """Check the rules, then train with the entry's own seeds, or those of them that are given.

    Raises:
        UsageError: a seed is none of the entry's, or the recipe is missing.
        ConfigError: the recipe breaks a rule of its own.
        DataError: the data cannot be read.
        TrainingError: a training diverged.
    """
    known = file.entry.seeds
    if strange := [seed for seed in seeds if seed not in known]:
        raise UsageError(f"{file.name} has no run with seed {strange[0]}; its seeds: {', '.join(map(str, known))}")
    problems = entry_problems(folder, file.entry, load_recipe(file.recipe))
    if not problems:
        try:
            check_recipe(folder.task, load_recipe(file.recipe))
        except UsageError as error:
            problems.append(str(error))
    found: list[CheckedSeed] = []
    if not problems:
        for number, seed in enumerate(wanted := seeds or known, 1):
            tell(f"{file.name}, seed {seed} ({number} of {len(wanted)}): training")
            found.append(_again(folder, file, seed, runs / f"seed-{seed}"))
            problems += budget_problems(folder.task, [(seed, found[-1].seconds, found[-1].cpu_seconds)])
    return CheckedEntry(
        task=folder.name, entry=file.name, problems=tuple(problems), remarks=file.entry.remarks, seeds=tuple(found)
    )


def _again(folder: TaskFolder, file: EntryFile, seed: int, place: Path) -> CheckedSeed:
    found = run_seed(folder.task, load_recipe(file.recipe, seed), place)
    lowest, highest = file.entry.interval(seed)
    return CheckedSeed(
        seed=seed,
        lowest=lowest,
        highest=highest,
        measured=found.value,
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds or 0.0,
        agrees=lowest - folder.task.tolerance <= found.value <= highest + folder.task.tolerance,
    )
