"""What the board's files say: tasks, and entries with their figures and how their recipes were chosen."""

from __future__ import annotations

from statistics import mean
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from axon_core import Config

__all__ = ["BoardEntry", "BoardTask", "Reference", "SeedRun", "SeedSpread", "Selection"]

TitleLine = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Reference(Config):
    """A figure to compare with, that no recipe of this repository reached."""

    title: TitleLine
    """What it is."""
    value: float
    """Its figure."""
    source: TitleLine
    """Where the figure is from."""


class BoardTask(Config):
    """What is measured, and what an entry may not change."""

    title: TitleLine
    """Its name for people."""
    summary: TitleLine
    """What is learned from what, in one sentence."""
    metric: TitleLine
    """The name of the figure in the evaluation: `loss`."""
    unit: TitleLine
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
    how: TitleLine
    """The choice in a sentence or two: which candidates, which measure."""
    candidates: NonNegativeInt | None = None
    """How many recipes were compared; left out where nobody counted."""
    seeds: tuple[int, ...] = ()
    """Seeds that took part in the choice."""


class BoardEntry(Config):
    """A recipe with its figures."""

    title: TitleLine
    """What it is called."""
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """The day of its runs."""
    commit: TitleLine
    """The commit that they were made with."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The checksum of the recipe (`recipe_digest`), by which an edit is noticed."""
    changed: TitleLine
    """What changed against the entry before."""
    hardware: TitleLine
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
