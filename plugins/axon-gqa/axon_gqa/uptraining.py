"""Up-training: a converted model is trained further by its run's own recipe, for a small share of the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axon_core import validate
from axon_core.training import TRAINERS, Recipe

SHARE = 0.05
"""The share α of the original steps that a converted model is trained further (arXiv 2305.13245, Section 3.1)."""
_WARMUP = 0.1


def uptraining_recipe(recipe: Recipe, init: Path) -> dict[str, Any]:
    """Return the tables of a recipe that trains the converted model in the folder `init` for `SHARE` of the steps.

    Data, trainer, optimiser and schedule stay those of `recipe`, by which the model was trained, as the paper trains
    "on the same pre-training recipe" (arXiv 2305.13245, Section 2.1). What differs besides `steps`:

    - `warmup` takes a tenth of the steps, because the optimiser begins without its moments;
    - `seed` differs, so that the first batches are not those the model started with;
    - `ema` is left out, because over so few steps it would remember the heads as they were pooled.

    Raises:
        ConfigError: the recipe's trainer does not take its options.
    """
    trainer = validate(TRAINERS[recipe.trainer.type].Config, recipe.trainer.options)
    steps = max(1, round(SHARE * trainer.steps))
    tables = recipe.tables
    tables["summary"] = f"Up-trains {init.name}: {SHARE:.0%} of the {trainer.steps:,} steps of {recipe.name}"
    tables["model"] = {"init": str(init)}
    tables["trainer"] |= {"seed": trainer.seed + 1, "steps": steps, "warmup": max(1, round(_WARMUP * steps))}
    tables["trainer"].pop("ema", None)
    return tables
