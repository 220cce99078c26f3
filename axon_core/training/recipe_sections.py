"""The registry of sections of recipes."""

from __future__ import annotations

from typing import Any

from axon_core.registry.registry import Registry

__all__ = ["RECIPE_SECTIONS"]

RECIPE_SECTIONS: Registry[Any] = Registry("recipe_section", "axon_core.training.sections:RecipeSection")
"""What tables of a recipe besides `model`, `trainer` and `data` do, by the table's name."""
