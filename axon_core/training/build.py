"""From a recipe to a trainer that can be fitted."""

from __future__ import annotations

from pathlib import Path

from axon_core.checkpoint.sizes import within_memory
from axon_core.config import at
from axon_core.training.recipe import Recipe
from axon_core.training.trainer import Trainer
from axon_core.training.trainers import TRAINERS

__all__ = ["build_trainer"]


def build_trainer(recipe: Recipe, saved: Path | None = None) -> Trainer:
    """Build the trainer; `saved` is an earlier export of the same recipe (see `Trainer.from_recipe`).

    Raises:
        ConfigError: a table breaks a rule; the message names the file and the place in it.
        DataError: the data cannot be used.
        UsageError: its models are larger than this machine's memory.
    """
    with at(source=recipe.source), within_memory():
        return TRAINERS[recipe.trainer.type].from_recipe(recipe, saved)
