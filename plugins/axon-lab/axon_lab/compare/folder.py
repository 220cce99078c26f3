"""The folder of a comparison.

design.json    what it is to do: recipe, axes, seeds, budget, cells
state.json     runs that failed or were killed, and why
paces/         with a budget of seconds: how long an update of each cell takes
runs/          a run folder for each cell and seed, with `measurements.json` and, when it is done, `result.json`
compare.json   the report, with compare.csv and compare.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, PositiveFloat

from axon_core import CheckpointError, Config, ConfigError, UsageError, parse_json, validate
from axon_core.checkpoint import is_occupied, write_text, writing
from axon_core.training import RunFolder
from axon_lab.compare.design import Design
from axon_lab.compare.results import CellResult, RecipeComparison, RunResult

__all__ = ["ComparisonFolder", "RunEnd", "RunKey"]

C = TypeVar("C", bound=Config)
_DESIGN = "design.json"


class RunKey(NamedTuple):
    """One run of a comparison."""

    cell: int
    """The number of its cell, counted from 0."""
    seed: int
    """Its seed."""


class RunEnd(Config):
    """How a run ended that is not done."""

    status: Literal["failed", "killed"]
    """Whether it ended itself, or was ended."""
    reason: str
    """Why, in one line."""
    again: bool
    """Whether the next call tries again without being asked: the cause was not the training."""


class _State(Config):
    ends: dict[str, RunEnd] = Field(default_factory=dict)


class _Pace(Config):
    seconds: PositiveFloat
    """Seconds of an update."""


class ComparisonFolder:
    """A comparison on disk.

    Attributes:
        path: the folder.
        design: what the comparison is to do.
        ends: runs that failed or were killed.
    """

    def __init__(self, path: Path, design: Design) -> None:
        self.path, self.design = path, design
        self.ends: dict[str, RunEnd] = {}

    @staticmethod
    def is_there(path: Path) -> bool:
        """Return whether a folder holds a comparison. Raises `UsageError` if it holds anything else."""
        if (path / _DESIGN).is_file():
            return True
        if path.is_file():
            raise UsageError(f"{path} is a file, but a comparison needs a folder: choose another name with --out")
        if is_occupied(path):
            raise UsageError(
                f"{path} is not empty and not a comparison: it has no {_DESIGN}. Choose another folder with --out"
            )
        return False

    @classmethod
    def open(cls, path: Path) -> ComparisonFolder:
        """Return an existing comparison.

        Raises:
            UsageError: there is none.
            CheckpointError: its files are damaged.
        """
        if not (path / _DESIGN).is_file():
            raise UsageError(
                f"{path} is not a comparison: it has no {_DESIGN}. Give the folder of `axon compare --out`"
            )
        folder = cls(path, _read(Design, path / _DESIGN))
        if (path / "state.json").exists():
            folder.ends = dict(_read(_State, path / "state.json").ends)
        return folder

    @classmethod
    def create(cls, path: Path, design: Design) -> ComparisonFolder:
        """Write a new comparison into a folder that exists. Raises `CheckpointError` if it cannot be written to."""
        with writing(path):
            (path / "runs").mkdir(exist_ok=True)
            (path / "paces").mkdir(exist_ok=True)
        write_text(path / _DESIGN, design.model_dump_json(indent=1))
        return cls(path, design)

    def keys(self) -> Iterator[RunKey]:
        """Yield all runs, the seeds fastest."""
        return (RunKey(cell, seed) for cell in range(len(self.design.cells)) for seed in self.design.seeds)

    def name(self, key: RunKey) -> str:
        """Return the name of a run's folder: the cell's number and values, and the seed."""
        values = "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "_", value) for value in self.design.cells[key.cell].values)
        return f"{key.cell:03d}-{values[:60]}-{key.seed}"

    def relative(self, key: RunKey) -> str:
        """Return a run's folder, relative to the comparison's."""
        return f"runs/{self.name(key)}"

    def run(self, key: RunKey) -> Path:
        """Return a run's folder."""
        return self.path / "runs" / self.name(key)

    def result(self, key: RunKey) -> Path:
        """Return the file that a run writes when it is done."""
        return self.run(key) / "result.json"

    def read_result(self, key: RunKey) -> RunResult | None:
        """Return what a run measured, or None if it is not done."""
        if not self.result(key).is_file():
            return None
        try:
            found = _read(RunResult, self.result(key))
        except CheckpointError:
            return None  # damaged: the run is done again
        return found if found.value is not None else None

    def note_end(self, key: RunKey, end: RunEnd | None) -> None:
        """Keep how a run ended, or forget it.

        Raises:
            CheckpointError: it cannot be written, so that it is known to this process alone.
        """
        name = self.name(key)
        if self.ends.get(name) == end:
            return
        self.ends = {other: known for other, known in self.ends.items() if other != name}
        if end is not None:
            self.ends[name] = end
        write_text(self.path / "state.json", _State(ends=self.ends).model_dump_json(indent=1))

    def write_pace(self, cell: int, seconds: float) -> None:
        """Keep how long an update of a cell takes. Raises `CheckpointError` if it cannot be written."""
        write_text(self.path / "paces" / f"{cell:03d}.json", _Pace(seconds=seconds).model_dump_json())

    def steps(self, cell: int) -> int | None:
        """Return how many updates each run of a cell makes; None if its pace is not measured yet.

        Raises:
            CheckpointError: the file of its pace is damaged.
        """
        if (steps := self.design.cells[cell].steps) is not None:
            return steps
        file = self.path / "paces" / f"{cell:03d}.json"
        if not file.exists() or self.design.budget is None:
            return None
        return max(1, int(self.design.budget.amount / _read(_Pace, file).seconds))

    def comparison(self) -> RecipeComparison:
        """Return the results so far."""
        design = self.design
        return RecipeComparison(
            recipe=design.recipe,
            overrides=design.overrides,
            axes=design.axes,
            seeds=design.seeds,
            budget=design.budget,
            metric=design.metric,
            unit=design.unit,
            higher_is_better=design.higher_is_better,
            counted=design.counted,
            cells=tuple(map(self._cell, range(len(design.cells)))),
            left_out=design.left_out,
            versions=self._versions(),
            hardware=design.hardware,
        )

    def _cell(self, number: int) -> CellResult:
        cell, steps = self.design.cells[number], self.steps(number)
        return CellResult(
            values=cell.values,
            parameters=cell.parameters,
            flops=None if cell.flops is None or steps is None else cell.flops * steps,
            cache_bytes_per_token=cell.cache_bytes_per_token,
            runs=tuple(self._run(RunKey(number, seed)) for seed in self.design.seeds),
        )

    def _run(self, key: RunKey) -> RunResult:
        if (done := self.read_result(key)) is not None:
            return done.model_copy(update={"seed": key.seed, "folder": self.relative(key)})
        end = self.ends.get(self.name(key))
        status, why = (end.status, end.reason) if end else ("waiting", "")
        return RunResult(seed=key.seed, status=status, reason=why, folder=self.relative(key))

    def _versions(self) -> dict[str, str]:
        """Return the versions of what the runs were made with, as their folders say; several of one are all named."""
        found: dict[str, set[str]] = {"torch": {str(torch.__version__)}, "axon-core": {metadata.version("axon-core")}}
        for key in self.keys():
            try:
                facts = RunFolder.open(self.run(key)).facts
                parts = [(part["distribution"], part["version"]) for part in facts["parts"]]
                parts += [*facts["versions"].items(), ("python", facts["hardware"]["python"])]
            except (CheckpointError, LookupError, TypeError, AttributeError):
                continue  # not begun, or damaged
            for name, version in parts:
                found.setdefault(str(name), set()).add(str(version))
        return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}


def _read(config: type[C], file: Path) -> C:
    try:
        return validate(config, parse_json(file.read_text("utf-8-sig")))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file} is damaged or cannot be read: {error}") from None
