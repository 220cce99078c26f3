"""Stages of a pipeline, in a registry of their own; the usual one is a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from axon_core import TRAINERS, at, config, validate
from axon_core.registry import Registry, Spec
from axon_core.training import AUTO, Recipe, RunFolder, build_trainer, choose_device, fit

__all__ = ["STAGES", "Computing", "Stage", "Training"]


class Stage(ABC):
    """One step of a pipeline, which leaves everything it makes in a folder.

    Attributes:
        config: the stage's table.
        device: where it computes; None where it only moves files.
    """

    device: str | None = None

    class Config(config.Config):
        """The stage's table in the pipeline's recipe."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def reseeded(cls, table: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the stage's valid table with `seed` added to its own, if it has one."""
        return {**table, "seed": int(table.get("seed", 0)) + seed} if "seed" in cls.Config.model_fields else table

    @classmethod
    def with_option(cls, table: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
        """Return the stage's valid table with an option of its computation, such as `device`, set if it exists."""
        return {**table, name: value} if name in cls.Config.model_fields else table

    @abstractmethod
    def run(self, out: Path) -> None:
        """Run the stage into the folder `out`; what an interrupted call left there is resumed or replaced."""


class Training(Stage):
    """A training run: its folder is a run folder, and an interrupted run is resumed."""

    class Config(Stage.Config):
        """A recipe's tables."""

        model: dict[str, Any] = Field(default_factory=dict)
        """The model, as the trainer expects it."""
        trainer: Spec
        """The registered trainer and its options."""
        data: dict[str, Any] = Field(default_factory=dict)
        """The data, as the trainer expects them."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with at("trainer"):
            kind = TRAINERS[config.trainer.type]
        kind.check_recipe(self._recipe("stage"))  # before the stages that come first
        with at("trainer"):
            self.device = validate(kind.Config, config.trainer.options).device

    @classmethod
    def reseeded(cls, table: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the table with `seed` added to the trainer's own."""
        before = Spec.of(table["trainer"]).options.get("seed", 0)
        return cls.with_option(table, "seed", int(before) + seed)

    @classmethod
    def with_option(cls, table: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
        """Return the table with an option of its trainer set; one without a trainer is refused later."""
        if "trainer" not in table:
            return table
        trainer = Spec.of(table["trainer"])
        return {**table, "trainer": {"type": trainer.type, **trainer.options, name: value}}

    def run(self, out: Path) -> None:
        """Train, or resume training."""
        recipe = self._recipe(out.name)
        saved = None
        if (out / "run.json").exists():
            checkpoint = RunFolder.open(out).checkpoints.find()
            saved = checkpoint and checkpoint / "model"
        fit(build_trainer(recipe, saved), out, resume=True, recipe={"name": recipe.name, **recipe.tables})

    def _recipe(self, name: str) -> Recipe:
        return Recipe.of(self.config.model_dump(mode="json"), name, f"stage {name}")


class Computing(Stage):
    """A stage that computes with models."""

    class Config(Stage.Config):
        """What such a stage has in its table."""

        device: str = Field(default=AUTO, validate_default=True)
        """Where to compute, in PyTorch's terms: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

        @field_validator("device")
        @classmethod
        def _computes(cls, device: str) -> str:
            return choose_device(device)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.device = config.device


STAGES: Registry[Stage] = Registry("stage", Stage)
"""Kinds of stages by key; a plugin adds one in the entry-point group `axon.v1.stage`."""
