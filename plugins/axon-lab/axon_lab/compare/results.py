"""What a comparison measures: its design, and one result for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from axon_core import Config

__all__ = ["Axis", "Budget", "CellResult", "CurvePoint", "LeftOut", "RecipeComparison", "RunResult", "RunStatus"]

RunStatus = Literal["waiting", "done", "failed", "killed"]


class Axis(Config):
    """One thing that is varied: a field of the recipe, and the values it takes."""

    path: str
    """The field: `model.attention.type`."""
    values: tuple[str, ...]
    """Its values as written on the command line; the first one is what the others are compared with."""


class Budget(Config):
    """What each run may use up; every run of a comparison has the same."""

    unit: Literal["steps", "seconds", "flops", "tokens"]
    """What is counted."""
    amount: float
    """How much of it."""


class CurvePoint(Config):
    """The metric at one step of a run."""

    step: NonNegativeInt
    """Updates made."""
    seconds: NonNegativeFloat
    """Seconds of training until then."""
    value: float
    """The metric on the held-out part."""


class RunResult(Config):
    """One training: a cell of the grid with one seed."""

    seed: int
    """The seed of the training."""
    status: RunStatus
    """What became of it."""
    folder: str
    """Its run folder, relative to the comparison's."""
    reason: str = ""
    """Why it failed or who killed it, in one line."""
    value: float | None = None
    """The comparison's metric at the end, over the held-out part; None unless it is done."""
    curve: tuple[CurvePoint, ...] = ()
    """The metric over the training."""
    steps: NonNegativeInt | None = None
    """Updates made."""
    seconds: NonNegativeFloat | None = None
    """Seconds of training, evaluations left out where they can be told."""
    tokens_per_s: NonNegativeFloat | None = None
    """Units (tokens, pictures) trained on a second."""
    memory_bytes: NonNegativeInt | None = None
    """Largest resident memory of its process."""
    decode_tokens_per_s: NonNegativeFloat | None = None
    """Tokens generated a second, one row, greedy; None if the model generates no text."""


class CellResult(Config):
    """One choice of values, with its runs."""

    values: tuple[str, ...]
    """A value for each axis, in their order."""
    parameters: NonNegativeInt | None = None
    """Trainable parameters."""
    flops: NonNegativeFloat | None = None
    """Floating-point operations of the whole training, all updates."""
    cache_bytes_per_token: NonNegativeFloat | None = None
    """Bytes a token of a text keeps in the decoding cache."""
    runs: tuple[RunResult, ...] = ()
    """One for each seed, in the seeds' order."""


class LeftOut(Config):
    """A choice of values that does not fit the recipe."""

    values: tuple[str, ...]
    """A value for each axis, in their order."""
    reason: str
    """Why it does not fit, in one line."""


class RecipeComparison(Config):
    """A comparison: its design and its results. `compare.json` holds it with what `conclusions` computes from it."""

    recipe: str
    """The recipe's name."""
    overrides: tuple[str, ...] = ()
    """What `--set` changed for all runs."""
    axes: tuple[Axis, ...]
    """What is varied."""
    seeds: tuple[int, ...]
    """The seeds of the runs of each cell: the same for all cells, so that differences are paired."""
    budget: Budget | None = None
    """What each run may use; None: the recipe's own steps."""
    metric: str = "loss"
    """The name of what is compared."""
    unit: str = "nats"
    """Its unit, for sentences."""
    higher_is_better: bool = False
    """Whether more of it is better."""
    counted: str = "tokens"
    """What the speed of training counts: the trainer's unit, `tokens` or `pictures`."""
    cells: tuple[CellResult, ...] = ()
    """All cells that fit, the first axis slowest."""
    left_out: tuple[LeftOut, ...] = ()
    """All others."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the distributions that took part, and of Python and torch."""
    hardware: str = ""
    """What it ran on."""

    def name(self, values: Sequence[str]) -> str:
        """Return a short name of a cell: its values, `GQA · rmsnorm`."""
        return " · ".join(values)
