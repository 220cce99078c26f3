"""The claims of the paper's card, checked."""

from __future__ import annotations

import math
import statistics

import torch

from axon_core.papers import Outcome
from axon_core.training import Recipe, build_trainer, evaluate, fit
from axon_ppo.maths import clipped_surrogate, gae

_SEEDS = (0, 1, 2)
# A training that takes 160 large updates on each step's data. With smaller updates the surrogates hardly differ here.
_HARD = ("steps=20", "epochs=40", "max_grad_norm=10.0", "schedule='constant'", "optimizer.lr=3e-2")
_FAR = 0.05
_CLIPPED, _FREE = 0.2, 1e30  # ε of Table 1, and one that no ratio reaches in float32: options must be finite


def pessimistic_bound() -> Outcome:
    """Check in float64 that L^CLIP is nowhere above L^CPI and has the same gradient at the old policy."""
    generator = torch.Generator().manual_seed(0)
    old, moved, advantages = torch.randn(3, 10_000, generator=generator, dtype=torch.float64)
    above = -math.inf
    for size in (0.01, 0.3, 3.0):
        new = old + size * moved
        clipped = -clipped_surrogate(new, old, advantages, 0.2)[0]
        above = max(above, (clipped - (new - old).exp() * advantages).max().item())
    start = old.clone().requires_grad_()
    clipped_surrogate(start, old, advantages, 0.2)[0].sum().backward()
    gradient = start.grad if start.grad is not None else torch.full_like(old, math.nan)
    worst = (-gradient - advantages).abs().max().item()  # d(ρ A) at ρ = 1 is A
    return Outcome(
        above <= 0 and worst < 1e-12,
        f"largest L^CLIP − L^CPI {above:.1e}; largest difference of the gradients at the old policy {worst:.1e}",
    )


def lambda_one() -> Outcome:
    """Compare the generalised advantages for λ = 1 with Eq. 10, summed directly in float64."""
    b, t, gamma = 4, 50, 0.97
    rewards, values, following = torch.randn(3, b, t, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    following[:, :-1] = values[:, 1:]
    ended = torch.zeros(b, t, dtype=torch.bool)
    advantages, _ = gae(rewards, values, following, ended, gamma=gamma, gae_lambda=1.0)
    worst = 0.0
    for start in range(t):
        powers = gamma ** torch.arange(t - start, dtype=torch.float64)
        direct = -values[:, start] + (rewards[:, start:] * powers).sum(1) + gamma ** (t - start) * following[:, -1]
        worst = max(worst, (advantages[:, start] - direct).abs().max().item())
    return Outcome(worst < 1e-12, f"largest difference {worst:.1e}")


def clipping() -> Outcome:
    """Train on `steering` with ε = 0.2 and without clipping, everything else equal, and compare the scores.

    As in the paper, a score is 0 for the policy before training and 1 for the best result overall. The claim holds if
    clipping is better for every seed, and on average by at least a twentieth.
    """
    trained = {clip: [_returns(seed, clip) for seed in _SEEDS] for clip in (_CLIPPED, _FREE)}
    best = max(after for runs in trained.values() for _, after in runs)
    clipped, free = ([(after - before) / (best - before) for before, after in runs] for runs in trained.values())
    better = [a - b for a, b in zip(clipped, free, strict=True)]
    return Outcome(
        "direction" if min(better) > 0 and statistics.mean(better) >= _FAR else False,
        f"score {statistics.mean(clipped):.2f} clipped and {statistics.mean(free):.2f} (from {min(free):.2f} to "
        f"{max(free):.2f}) not; the difference",
        better,
        _SEEDS,
    )


def _returns(seed: int, clip: float) -> tuple[float, float]:
    """Return the return of an episode before and after training."""
    trainer = build_trainer(_recipe(seed, clip))
    return evaluate(trainer)["return"], fit(trainer, progress=False).metrics["return"]


def _recipe(seed: int, clip: float) -> Recipe:
    overrides = (f"seed={seed}", f"clip_range={clip}", *_HARD)
    return Recipe.load("steering", [f"trainer.{override}" for override in overrides])
