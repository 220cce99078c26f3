"""The claims of the paper's card, checked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from axon_core import DataError
from axon_core.papers import NotRun, Outcome
from axon_core.training import Recipe, build_trainer, fit
from axon_ddpm.losses import bound_term
from axon_ddpm.parameterisation import unmix
from axon_ddpm.process import Process
from axon_ddpm.quality import FRECHET
from axon_ddpm.schedule import Linear
from axon_ddpm.unet import UNet

_SEEDS = (0, 1, 2)
_WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ε, simple": ("simple", {}),
    "μ̃, bound, fixed σ": ("variational", {"parameterisation": "mean"}),
    "μ̃, bound, learned σ": ("variational", {"parameterisation": "mean", "variance": "learned"}),
}


def parameters() -> Outcome:
    """Count the parameters of the U-Net for CIFAR-10."""
    found = UNet.build(size=32).n_parameters
    return Outcome(round(found / 1e6, 1) == 35.7, f"{found:,} parameters")


def weighted_error() -> Outcome:
    """Compare the bound's terms in float32 with the weighted squared errors of ε that the paper derives from them."""
    process, generator = Process(Linear(Linear.Config()).betas()), torch.Generator().manual_seed(0)
    x0, noise, off = torch.randn(3, 999, 1, 4, 4, generator=generator, dtype=torch.float32)
    t = torch.arange(1, 1000)
    x_t = process.diffuse(x0.clamp(-1, 1), noise, t)
    wrong = unmix("epsilon", process, noise + off, x_t, t)[0]
    small = process.log_variance_small[t].float()[:, None, None, None]
    terms = bound_term(process, x0.clamp(-1, 1), x_t, t, process.posterior_mean(wrong, x_t, t), small)
    beta, rest = process.betas[t], 1 - process.alphas_bar[t]
    weight = beta**2 / (2 * process.posterior_variance[t] * (1 - beta) * rest)
    expected = weight * off.double().square().flatten(1).mean(1) / math.log(2)
    worst = (terms / expected - 1).abs().max().item()
    return Outcome(worst < 1e-2, f"largest relative difference over t = 1 … 999, in float32: {worst:.1e}")


def prediction_and_loss() -> Outcome:
    """Train small models on digits in three ways, and compare the Fréchet distances of their samples.

    Raises:
        NotRun: the digits cannot be read.
    """
    found = {name: [_distance(seed, loss, dict(chain)) for seed in _SEEDS] for name, (loss, chain) in _WAYS.items()}
    best, *others = found.values()
    shown = ", ".join(f"{name} {statistics.mean(values):.2f}" for name, values in found.items())
    better = all(statistics.mean(best) < statistics.mean(other) for other in others)
    return Outcome(
        better,
        f"Fréchet distance in a small classifier's features: {shown}; the first over the next best:",
        [a / min(rest) for a, *rest in zip(*found.values(), strict=True)],
        _SEEDS,
    )


def likelihood() -> Outcome:
    """Train on CIFAR-10 by the paper's recipe, and compare bits per dimension.

    Raises:
        NotRun: there is no CIFAR-10 or no GPU.
    """
    if not torch.cuda.is_available():
        raise NotRun("800,000 steps need a GPU, and PyTorch finds none")
    try:
        trainer = build_trainer(Recipe.load("cifar10"))
    except DataError as error:
        raise NotRun(f"it needs CIFAR-10 as an .npz file: {error}") from None
    bits = fit(trainer, "runs/cifar10").metrics["bits_per_dim"]
    return Outcome(bits <= 3.75, f"{bits:.2f} bits/dim")


def _distance(seed: int, loss: str, chain: dict[str, Any]) -> float:
    tables = {
        "model": {
            "type": "unet",
            "width": 16,
            "groups": 8,
            "multipliers": [1, 2],
            "blocks": 1,
            "attention_at": [],
            "dropout": 0.0,
        },
        "data": {"path": "digits", "classes": True},
        "trainer": {
            "type": "ddpm",
            "seed": seed,
            "steps": 500,
            "batch_size": 64,
            "loss": loss,
            "schedule": "cosine",
            "max_grad_norm": 1.0,
            "ema": 0.99,
            "diffusion": {"schedule": {"type": "linear", "steps": 100}, **chain},
            "sampling": {"sampler": "ddpm", "steps": 100},
            "bound_steps": 1,
            "optimizer": {"type": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0},
        },
    }
    try:
        trainer = build_trainer(Recipe.of(tables, "table-2", "the claim's recipe"))
    except DataError as error:
        raise NotRun(str(error)) from None
    return fit(trainer, progress=False).metrics[FRECHET]
