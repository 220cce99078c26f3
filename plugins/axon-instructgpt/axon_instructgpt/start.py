"""What training starts from: a new model and a tokenizer trained on the data, or a saved model and its own."""

from __future__ import annotations

from pathlib import Path

from axon_core import at
from axon_core.interfaces import Model
from axon_core.registry import Spec
from axon_core.text import Tokenizer
from axon_core.training import InitialModel, Recipe

__all__ = ["begin"]


def begin(recipe: Recipe, saved: Path | None, seed: int, tokenizer: Spec, text: str) -> tuple[Model, Tokenizer]:
    """Return what the table `model` of a recipe describes, and its tokenizer; see `InitialModel`.

    Args:
        recipe: the recipe.
        saved: what it exported before.
        seed: what a new model's weights are drawn from.
        tokenizer: a new model's tokenizer.
        text: what that tokenizer is trained on.

    Raises:
        ConfigError: the table, or the tokenizer's, breaks a rule.
        CheckpointError: there is no intact model in the folder.
    """
    with at("model"):
        initial = InitialModel(recipe.model, saved)
    with at("data", "tokenizer"):
        found = initial.tokenizer(tokenizer, text)
    with at("model"):
        return initial.build(Model, seed, found), found
