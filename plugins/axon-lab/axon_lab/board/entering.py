"""A candidate becomes an entry: its recipe is checked, trained with seeds of its own, and written down beside it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from axon_core import UsageError, to_toml
from axon_core.checkpoint import claimed_file, write_text, writing
from axon_lab.board.folders import EntryFile, TaskFolder, entry_text, find_task, recipe_digest
from axon_lab.board.running import check_recipe, hardware, load_recipe, plugin_versions, run_seeds
from axon_lab.board.tasks import BoardEntry, SeedRun, Selection

__all__ = ["check_candidate", "enter_candidate"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_candidate(folder: TaskFolder, name: str, recipe: str | Path, seeds: Sequence[int], chosen: Selection) -> int:
    """Return how many parameters a candidate trains, after all rules but those that only training shows.

    Raises:
        UsageError: it breaks a rule; it was entered before; or the seeds are too few, given twice, or took part in the
            choice.
        ConfigError: the recipe breaks a rule of its own.
        DataError: the data cannot be read.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"an entry's name has lower-case letters, digits and single hyphens, got {name!r}")
    if len({*seeds}) < len(seeds):
        raise UsageError("each seed counts once; give different ones")
    if len(seeds) < folder.task.seeds:
        raise UsageError(f"an entry of {folder.name} needs at least {folder.task.seeds} seeds, got {len(seeds)}")
    if both := {*seeds} & {*chosen.seeds}:
        words = ", ".join(map(str, sorted(both)))
        raise UsageError(f"an entry's seeds take no part in the choice, but {words} did; give others with --seeds")
    plan = load_recipe(recipe)
    digest = recipe_digest(plan)
    for one in folder.entries:
        if one.entry.digest == digest:
            raise UsageError(
                f"this recipe is the entry {one.name} already: the held-out part is evaluated once for each. Run it "
                f"again with `axon board check {folder.name} {one.name}`"
            )
    return check_recipe(folder.task, plan)


def enter_candidate(
    folder: TaskFolder,
    name: str,
    recipe: str | Path,
    seeds: Sequence[int],
    chosen: Selection,
    changed: str,
    runs: Path,
    tell: Callable[[str], object],
) -> EntryFile:
    """Train a candidate with its seeds, and write its entry and recipe into the task's folder.

    Only one process enters at a time. What finished seeds measured stays in `runs`, so that a killed entry continues.

    Raises:
        UsageError: as `check_candidate` and `run_seeds`.
        ConfigError: the recipe breaks a rule of its own.
        DataError: the data cannot be read.
        CheckpointError: a file cannot be written.
    """
    plan = load_recipe(recipe)
    with claimed_file(folder.path / "task.toml"):
        folder = find_task(folder.path.parent, folder.name)  # with what another process entered just now
        check_candidate(folder, name, recipe, seeds, chosen)
        commit, plugins = _commit(folder.path), plugin_versions()  # of the code that trains, and not of later edits
        found = run_seeds(folder.task, recipe, seeds, runs / recipe_digest(plan)[:12], tell)
        entry = BoardEntry(
            title=plan.name,
            date=date.today().isoformat(),
            commit=commit,
            digest=recipe_digest(plan),
            changed=changed,
            hardware=hardware(),
            parameters=found[0].parameters,
            plugins=plugins,
            selection=chosen,
            run=tuple(SeedRun(**run.model_dump(include={*SeedRun.model_fields})) for run in found),
        )
        number = max((int(one.name[:3]) for one in folder.entries), default=0) + 1
        file = f"{number:03d}-{name}"
        place = folder.path / "recipes" / f"{file}.toml"
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        write_text(place, _recipe_text(recipe))
        write_text(folder.path / f"{file}.toml", entry_text(entry))  # last: without it there is no entry
    return EntryFile(file, entry, place)


def _recipe_text(recipe: str | Path) -> str:
    """Return the recipe as the file has it, comments included, if it is one; otherwise its tables."""
    path = Path(recipe)
    return path.read_text("utf-8-sig") if path.is_file() else to_toml(load_recipe(recipe).tables) + "\n"


def _commit(folder: Path) -> str:
    """Return the commit that the files are at, and whether some differ from it; `unknown` without git."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        return f"{commit} with changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
