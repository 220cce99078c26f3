"""The recipes: each builds its trainer, and that of CIFAR-10 is the paper's."""

import numpy as np
import pytest

from axon_core.training import Recipe, build_trainer

RECIPES = ["cifar10", "digits", "emoji32"]


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.setenv("AXON_DATA_DIR", str(tmp_path))
    for name in ("cifar10", "emoji32"):
        (tmp_path / name).mkdir()
        images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        np.savez(tmp_path / name / f"{name}.npz", images=images)
    return lambda name: build_trainer(Recipe.load(name, ["trainer.device=cpu"]))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_trainer(built, name):
    made = built(name)
    assert made.model.config.n_classes == len(made.data.names)
    data = made.batch(0)
    assert len(data["image"]) == made.config.batch_size


def test_the_recipe_of_cifar10_is_the_papers(built):
    made = built("cifar10")
    config, model = made.config, made.model.config
    assert made.model.n_parameters == 35_746_307
    assert (model.width, model.multipliers, model.blocks, model.attention_at) == (128, (1, 2, 2, 2), 2, (16,))
    assert (model.dropout, model.groups, model.n_heads) == (0.1, 32, 1)
    assert (config.steps, config.batch_size, config.warmup) == (800_000, 128, 5000)
    assert (config.max_grad_norm, config.ema) == (1.0, 0.9999)
    optimizer = config.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", 2e-4, (0.9, 0.999), 0)
    assert (config.loss, config.flip, config.schedule) == ("simple", True, "constant")
    assert made.diffusion.config.variance == "fixed_large" and made.diffusion.config.parameterisation == "epsilon"
    assert made.diffusion.process.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert (made.dali.steps, made.dali.config.sampler.type) == (1000, "ddpm")
    assert made.dali._process.timesteps.tolist() == list(range(1000))
