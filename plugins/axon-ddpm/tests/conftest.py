"""Small pictures, and a small trained run, that several test files share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from axon_core.loop import fit
from axon_core.recipe import Recipe

MODEL = {"type": "unet", "width": 8, "groups": 4, "multipliers": [1, 2], "blocks": 1, "attention_at": [4]}


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """Return what makes the recipe of a tiny training from its data table, model options and trainer options."""

    def make(data: dict, model: dict | None = None, **trainer) -> Recipe:
        chain = {"schedule": {"type": "cosine", "steps": 10}}
        settings = {"type": "ddpm", "batch_size": 6, "steps": 4, "compared": 0, "bound_steps": 3, "grid": 4}
        tables = {"model": {**MODEL, **(model or {})}, "data": data}
        return Recipe.of({**tables, "trainer": {**settings, "diffusion": chain, **trainer}}, "tiny", "a test")

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """An .npz file of 24 pictures 8×8 in three classes: the brighter channel."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = rng.integers(0, 90, (24, 8, 8, 3), dtype=np.uint8)
    images[np.arange(24), :, :, labels] += 150
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def run(recipe, pictures, tmp_path_factory) -> Path:
    """The folder of a run of four steps, whose weights are then stirred so that every input matters."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = recipe({"path": str(pictures), "classes": True}, ema=0.9)
    trainer = plan.build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    fit(trainer, folder, recipe={"name": plan.name, **plan.tables})
    return folder
