"""Converts the folder of a multi-head model to that of a grouped-query model, with a recipe to train it further."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import tomli_w

from axon_core.checkpoint import atomic_folder, claimed_folder
from axon_core.interfaces import CausalLM
from axon_core.text import Tokenizer
from axon_core.training import Recipe, RunFolder, pinned_model_folder
from axon_gqa.conversion import convert_model
from axon_gqa.uptraining import uptraining_recipe


class Converted(NamedTuple):
    """What `convert_checkpoint` converted, and the result."""

    before: CausalLM
    """The model as it was."""
    after: CausalLM
    """The model with fewer key and value heads."""
    recipe: Recipe | None
    """The recipe that was written, at `recipe.source`."""


def convert_checkpoint(run: Path, out: Path, n_kv_heads: int, device: str = "cpu") -> Converted:
    """Write the model of `run` with `n_kv_heads` mean-pooled key and value heads, its tokenizer, and a recipe.

    The recipe up-trains it (`uptraining`). There is none if `run` was not trained by a recipe for one model: a model's
    folder, such as an imported one, or a run from Python.

    Args:
        run: a run's folder or a model's.
        out: the folder to create; it must be new or empty.
        n_kv_heads: key/value heads of each attention, the groups G.
        device: where the means are computed.

    Raises:
        CheckpointError: there is no language model in `run`, or it is damaged, or `out` cannot be written to.
        UsageError: `out` is not empty, or the model's attention cannot be converted this way (see `convert_model`).
    """
    with claimed_folder(out) as place, pinned_model_folder(run) as folder:
        recipe = _recipe(run, out, n_kv_heads)
        before, tokenizer = CausalLM.load(folder), Tokenizer.load(folder)
        after = convert_model(before.to(device), n_kv_heads)
        with atomic_folder(place) as new:
            after.save(new, tokenizer)
            if recipe:
                (new / f"{recipe.name}.toml").write_text(tomli_w.dumps(recipe.tables), encoding="utf-8")
    return Converted(before, after, recipe)


def _recipe(run: Path, out: Path, n_kv_heads: int) -> Recipe | None:
    """Return the recipe for up-training the model of `run` once it is in `out`, if there can be one."""
    if (run / "config.json").exists():
        return None
    folder = RunFolder.open(run)
    if not folder.facts.get("recipe"):
        return None
    recipe = folder.recipe()
    if not recipe.model.keys() & {"type", "init"}:  # models by role
        return None
    name = f"{recipe.name}-gqa{n_kv_heads}"
    return Recipe.of(uptraining_recipe(recipe, out), name, str(out / f"{name}.toml"))
