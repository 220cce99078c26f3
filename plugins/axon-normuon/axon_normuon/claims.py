"""Checks of the paper's claims; `axon reproduce normuon` runs them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import Recipe, build_trainer, fit
from axon_core.papers import Outcome
from axon_core.training import COEFFICIENTS, MuonOptimizer
from axon_normuon.normuon import NorMuon, NorMuonOptimizer

SEEDS = (0, 1, 2)
_STEPS = 300
_MUON = {"lr": 0.02, "momentum": 0.95, "embedding_lr": 0.05}
_OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "Adam": {"type": "adamw", "lr": 4e-3, "weight_decay": 0.0},
    "Muon": {"type": "muon", **_MUON},
    "NorMuon": {"type": "normuon", **_MUON},
}


def balanced_neurons() -> Outcome:
    """Compare how much the row norms of one step vary, over the steps of a training."""
    spreads = {name: _mean(_row_spread, moves) for name, moves in _moves().items()}
    gains = [1 - ours / muon for ours, muon in zip(spreads["NorMuon"], spreads["Muon"], strict=True)]
    shown = ", ".join(f"{name} {statistics.mean(found):.3f}" for name, found in spreads.items())
    found = f"standard deviation of a step's row norms over their mean: {shown}; it is less by this share"
    return Outcome("direction" if min(gains) > 0 else False, found, values=gains)


def conditioning() -> Outcome:
    """Compare the spread of singular values of the momentum, of Muon's steps and of NorMuon's."""
    spreads = {name: statistics.mean(_mean(_singular_spread, moves)) for name, moves in _moves().items()}
    kept = max(spreads["Muon"], spreads["NorMuon"]) < 0.5 * spreads["momentum"]
    shown = ", ".join(f"{name} {spread:.2f}" for name, spread in spreads.items())
    return Outcome(
        "direction" if kept else False, f"standard deviation of the singular values over their mean: {shown}"
    )


def memory() -> Outcome:
    """Compare what the optimisers keep for a layer of 2048 × 2048, and for AdamW's two moments."""
    layer = torch.nn.Linear(2048, 2048, bias=False, device="meta")
    groups = [{"params": [layer.weight], "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}]
    muon, ours = layer.weight.nbytes, NorMuonOptimizer(groups, ()).moment_bytes()
    return Outcome(ours / muon < 1.001, f"{ours / muon:.4f} of Muon's bytes; AdamW's are 2 of them")


def efficiency() -> Outcome:
    """Train a small language model with each optimiser for the same number of steps, and compare held-out losses."""
    losses = {name: [_trained(name, seed) for seed in SEEDS] for name in _OPTIMIZERS}
    means = {name: statistics.mean(values) for name, values in losses.items()}
    gains = [muon - ours for ours, muon in zip(losses["NorMuon"], losses["Muon"], strict=True)]
    holds = means["NorMuon"] < means["Muon"] < means["Adam"]
    shown = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    found = f"held-out nats after {_STEPS} steps: {shown}; Muon minus NorMuon"
    return Outcome("direction" if holds else False, found, values=gains)


def _trained(name: str, seed: int) -> float:
    """Return the held-out loss of a model of four layers, in nats per token."""
    trainer = build_trainer(_recipe(_OPTIMIZERS[name], seed, _STEPS))
    return fit(trainer, progress=False).metrics["loss"]


def _recipe(optimizer: Mapping[str, Any], seed: int, steps: int) -> Recipe:
    model = {"type": "xllama", "dim": 64, "n_layers": 2, "n_heads": 2, "context": 32}
    training = {"steps": steps, "batch_size": 12, "schedule": "linear", "seed": seed}
    tables = {
        "model": model,
        "data": {"held_out": 0.02},
        "trainer": {"type": "causal_lm", **training, "optimizer": dict(optimizer)},
    }
    return Recipe.of(tables, "normuon-claim", "A small language model")


@cache
def _moves() -> Mapping[str, list[list[Tensor]]]:
    """Return, by what made them and for each seed, steps of one matrix: from gradients with rows of many sizes.

    The gradients have a part that stays and one that changes, and neurons as active as log-normal numbers say.
    """
    found: dict[str, list[list[Tensor]]] = {"momentum": [], "Muon": [], "NorMuon": []}
    coefficients = [COEFFICIENTS["quintic"](i) for i in range(5)]
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        activity = torch.randn(256, 1, generator=generator, dtype=torch.float32).exp()
        lasting = (
            torch.randn(256, 64, generator=generator, dtype=torch.float32)
            @ torch.randn(64, 64, generator=generator, dtype=torch.float32)
            / 8
        )
        weights = {name: torch.nn.Parameter(torch.zeros(256, 64)) for name in ("Muon", "NorMuon")}
        group = {"lr": 1.0, "momentum": 0.95, "weight_decay": 0.0}
        muon = MuonOptimizer([{"params": [weights["Muon"]], **group}], coefficients)
        ours = NorMuon(lr=1.0).matrix_optimizer([{"params": [weights["NorMuon"]], **group}], coefficients, {})
        steps: dict[str, list[Tensor]] = {name: [] for name in found}
        for _ in range(40):
            noise = torch.randn(256, 64, generator=generator, dtype=torch.float32)
            for name, optimizer in (("Muon", muon), ("NorMuon", ours)):
                before = weights[name].detach().clone()
                weights[name].grad = activity * (lasting + 2 * noise)
                optimizer.step()
                steps[name].append(before - weights[name].detach())
            momentum = muon.state[weights["Muon"]]["momentum"]
            steps["momentum"].append(momentum.clone())
        for name, made in steps.items():
            found[name].append(made[20:])
    return found


def _mean(measure: Any, moves: list[list[Tensor]]) -> list[float]:
    return [statistics.mean(measure(step) for step in steps) for steps in moves]


def _row_spread(step: Float[Tensor, "r c"]) -> float:
    norms = step.norm(dim=1)
    return (norms.std() / norms.mean()).item()


def _singular_spread(step: Float[Tensor, "r c"]) -> float:
    values = torch.linalg.svdvals(step)
    return (values.std() / values.mean()).item()
