"""Small pictures, and a small trained run, that several test files share."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from axon_core.training import Recipe, build_trainer, fit

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


@pytest.fixture
def trainer(recipe, pictures):
    """Return what makes a tiny trainer of the pictures by class from its options."""
    return lambda **options: build_trainer(recipe({"path": str(pictures), "classes": True}, **options))


@pytest.fixture(scope="session")
def stirred() -> Callable[..., Any]:
    """Return what moves all weights of a model at random, so that every input matters."""

    def stir(model, scale=0.05):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return model

    return stir


@pytest.fixture(scope="session")
def naive_term() -> Callable[..., torch.Tensor]:
    """Return the term of the bound at t in bits per dimension, in float64: ε is predicted, and σ² is β."""

    def term(betas, output, x0, x_t, t, *, clip):
        bars = [1.0, *itertools.accumulate(1 - betas, lambda a, b: a * b)]
        before, bar, beta = bars[t], bars[t + 1], betas[t]
        guess = (x_t - (1 - bar) ** 0.5 * output) / bar**0.5
        guess = guess.clamp(-1, 1) if clip else guess
        true, mean = (
            before**0.5 * beta / (1 - bar) * x + (1 - beta) ** 0.5 * (1 - before) / (1 - bar) * x_t for x in (x0, guess)
        )
        if t:
            small = beta * (1 - before) / (1 - bar)
            nats = kl_divergence(Normal(true, small**0.5), Normal(mean, beta**0.5))
        else:  # whose variance is β̃ of t = 1
            normal = Normal(mean, (betas[1] * (1 - bar) / (1 - bars[2])) ** 0.5)
            upper = torch.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
            lower = torch.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
            nats = -(upper - lower).clamp(min=1e-12).log()
        return nats.flatten(1).mean(1) / math.log(2)

    return term


@pytest.fixture(scope="session")
def run(recipe, pictures, stirred, tmp_path_factory) -> Path:
    """The folder of a run of four steps, whose weights are then stirred so that every input matters."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = recipe({"path": str(pictures), "classes": True}, ema=0.9)
    trainer = build_trainer(plan)
    stirred(trainer.model)
    fit(trainer, folder, recipe={"name": plan.name, **plan.tables})
    return folder
