"""From a recipe to a trainer that can be fitted."""

from __future__ import annotations

from pathlib import Path

from axon_core.checkpoint.sizes import within_memory
from axon_core.checkpoint.weights import weightless
from axon_core.config import at
from axon_core.errors import UsageError
from axon_core.training.recipe import Recipe
from axon_core.training.sections import build_sections, in_sections
from axon_core.training.trainer import Trainer
from axon_core.training.trainers import TRAINERS

__all__ = ["build_bare_trainer", "build_trainer"]


def build_trainer(recipe: Recipe, saved: Path | None = None) -> Trainer:
    """Build the trainer; `saved` is an earlier export of the same recipe (see `Trainer.from_recipe`).

    Raises:
        ConfigError: a table breaks a rule; the message names the file and the place in it.
        DataError: the data cannot be used.
        UsageError: its models are larger than this machine's memory.
    """
    with at(source=recipe.source), within_memory():
        sections = build_sections(recipe.sections)
        with in_sections(sections, saved):
            trainer = TRAINERS[recipe.trainer.type].from_recipe(recipe, saved)
        for name, section in zip(recipe.sections, sections, strict=True):
            with at(name):
                section.apply(trainer)
        return trainer


def build_bare_trainer(recipe: Recipe) -> Trainer:
    """Build the trainer with models that have shapes but no weights (`weightless`), so that they may be of any size.

    Only a trainer that learns from what its models compute, such as texts that they generate, gets weights, if this
    machine can hold them.

    Raises:
        ConfigError: a table breaks a rule; the message names the file and the place in it.
        DataError: the data cannot be used.
    """
    kind = TRAINERS[recipe.trainer.type]
    if kind.collect is not Trainer.collect and not kind.collects_ahead:
        try:
            return build_trainer(recipe)
        except UsageError:
            pass  # too large, or an error that the next line raises too
    with weightless():
        return build_trainer(recipe)
