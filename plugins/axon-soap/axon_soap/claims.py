"""Checks of the paper's claims; `axon reproduce soap` runs them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core import Recipe, build_trainer, fit
from axon_core.papers import Outcome
from axon_core.training import AdamW
from axon_soap.eigenbasis import rotate, rotate_back
from axon_soap.soap import SOAP

SEEDS = (0, 1, 2)
_STEPS = 120


def adafactor() -> Outcome:
    """Compare Algorithm 1 with Algorithm 2 on a data set of gradients, with ε = 0."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    batch = mixing @ torch.randn(64, 7, 5, generator=generator, dtype=torch.float64)
    left, right = (batch @ batch.mT).mean(0), (batch.mT @ batch).mean(0)
    worst = 0.0
    for gradient in batch:
        shampoo = _idealised_shampoo(gradient, left, right)
        adafactor = _idealised_adafactor(gradient, batch, left, right)
        worst = max(worst, ((shampoo - adafactor).norm() / shampoo.norm()).item())
    return Outcome(worst < 1e-8, f"largest relative difference {worst:.0e} over {len(batch)} gradients")


def _idealised_shampoo(
    g: Float[Tensor, "r c"], left: Float[Tensor, "r r"], right: Float[Tensor, "c c"]
) -> Float[Tensor, "r c"]:
    """Return √trace(L) L^(-1/2) G R^(-1/2). Source: 2409.11321, Algorithm 1."""
    roots: list[Tensor] = []
    for matrix in (left, right):
        values, vectors = torch.linalg.eigh(matrix)
        roots.append(vectors @ torch.diag(values**-0.5) @ vectors.T)
    return left.trace().sqrt() * roots[0] @ g @ roots[1]


def _idealised_adafactor(
    g: Float[Tensor, "r c"], batch: Float[Tensor, "b r c"], left: Float[Tensor, "r r"], right: Float[Tensor, "c c"]
) -> Float[Tensor, "r c"]:
    """Return G divided by √(A Cᵀ / Σ A) in the eigenbasis. Source: 2409.11321, Algorithm 2."""
    bases = torch.linalg.eigh(left).eigenvectors, torch.linalg.eigh(right).eigenvectors
    squares = torch.stack([rotate(each, *bases).square() for each in batch]).mean(0)
    rows, columns = squares.sum(1), squares.sum(0)
    return rotate_back(rotate(g, *bases) / (torch.outer(rows, columns) / rows.sum()).sqrt(), *bases)


def recovers_adam() -> Outcome:
    """Compare SOAP without rotations with AdamW, over some steps of a layer."""
    ours, theirs = nn.Linear(6, 5, dtype=torch.float64), nn.Linear(6, 5, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    (soap,) = SOAP(lr=0.1, betas=(0.9, 0.95), weight_decay=0.3, largest=1).build([ours])
    (adamw,) = AdamW(lr=0.1, betas=(0.9, 0.95), weight_decay=0.3).build([theirs])
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
            its.grad = mine.grad.clone()
        soap.step()
        adamw.step()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    worst = max((mine - its).abs().max().item() for mine, its in pairs)
    return Outcome(worst < 1e-10, f"largest difference {worst:.0e}")


def frequency() -> Outcome:
    """Train a small language model with AdamW and, as long, with SOAP at several frequencies; compare losses."""
    losses = {"AdamW": [_trained({"type": "adamw", "weight_decay": 0.0}, seed) for seed in SEEDS]}
    losses |= {f"f = {f}": [_trained({"type": "soap", "every": f}, seed) for seed in SEEDS] for f in (1, 10, 100)}
    adamw, *means = (statistics.mean(values) for values in losses.values())
    gains = [theirs - ours for ours, theirs in zip(losses["f = 1"], losses["AdamW"], strict=True)]
    shown = ", ".join(f"{name} {statistics.mean(values):.3f}" for name, values in losses.items())
    found = f"held-out nats after {_STEPS} steps: {shown}; AdamW minus SOAP at f = 1"
    holds = means[0] < adamw and means == sorted(means)
    return Outcome("direction" if holds else False, found, values=gains)


def _trained(optimizer: Mapping[str, Any], seed: int) -> float:
    """Return the held-out loss of a model of two layers, in nats per token; the rate is a good one for AdamW."""
    training = {"steps": _STEPS, "batch_size": 64, "schedule": "linear", "warmup": 20, "seed": seed}
    tables = {
        "model": {"type": "xllama", "dim": 64, "n_layers": 2, "n_heads": 2, "context": 32},
        "data": {"held_out": 0.02},
        "trainer": {"type": "causal_lm", **training, "optimizer": {"lr": 8e-3, **optimizer}},
    }
    trainer = build_trainer(Recipe.of(tables, "soap-claim", "A small language model"))
    return fit(trainer, progress=False).metrics["loss"]
