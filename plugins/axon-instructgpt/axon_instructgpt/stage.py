"""Stages of a pipeline, in a registry of their own; the usual one is a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pydantic import Field

from axon_core import TRAINERS, config
from axon_core.callbacks.progress import Progress
from axon_core.config import Spec, at
from axon_core.loop import fit
from axon_core.recipe import Recipe
from axon_core.registry import Registry
from axon_core.run import RunFolder

__all__ = ["STAGES", "Stage", "Training"]


class Stage(ABC):
    """One step of a pipeline, which leaves all it brings in a folder."""

    class Config(config.Config):
        """The stage's table in the pipeline's recipe."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def reseeded(cls, table: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the stage's valid table with `seed` added to its own, if it has one."""
        return {**table, "seed": int(table.get("seed", 0)) + seed} if "seed" in cls.Config.model_fields else table

    @abstractmethod
    def run(self, out: Path) -> None:
        """Do it, into the folder `out`; what an interrupted earlier call left there is taken up, or replaced."""


class Training(Stage):
    """A training: the folder is a run folder, and an interrupted one is resumed."""

    class Config(Stage.Config):
        """A recipe's tables."""

        model: dict[str, Any] = Field(default_factory=dict)
        """The model, as the trainer wants it."""
        trainer: Spec
        """The registered trainer and its options."""
        data: dict[str, Any] = Field(default_factory=dict)
        """The data, as the trainer wants them."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with at("trainer"):
            kind = TRAINERS[config.trainer.type]
        kind.check_recipe(self._recipe("stage"))  # before the stages that come first

    @classmethod
    def reseeded(cls, table: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the table with `seed` added to the trainer's own."""
        trainer = Spec.of(table["trainer"])
        options = {"type": trainer.type, **trainer.options}
        return {**table, "trainer": {**options, "seed": int(options.get("seed", 0)) + seed}}

    def run(self, out: Path) -> None:
        """Train, or train on."""
        recipe = self._recipe(out.name)
        saved = None
        if (out / "run.json").exists():
            checkpoint = RunFolder.open(out).checkpoints.find()
            saved = checkpoint and checkpoint / "model"
        fit(recipe.build(saved), out, resume=True, hooks=[Progress()], recipe={"name": recipe.name, **recipe.tables})

    def _recipe(self, name: str) -> Recipe:
        return Recipe.of(self.config.model_dump(mode="json"), name, f"stage {name}")


STAGES: Registry[Stage] = Registry("stage", Stage)
"""Kinds of stages by key; a plugin adds one in the entry-point group `axon.v1.stage`."""
