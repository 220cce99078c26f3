"""Checks of the paper's claims; `axon reproduce cwd` runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core.papers import Outcome
from axon_core.training import COEFFICIENTS, WEIGHT_DECAYS, MuonOptimizer

Make = Callable[[nn.Parameter, float], torch.optim.Optimizer]

_LR, _DECAY = 0.05, 0.4


def _sgd(weight: nn.Parameter, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([weight], lr=_LR, weight_decay=decay)


def _momentum(weight: nn.Parameter, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([weight], lr=_LR, momentum=0.9, weight_decay=decay)


def _adamw(weight: nn.Parameter, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight], lr=_LR, weight_decay=decay)


def _muon(weight: nn.Parameter, decay: float) -> torch.optim.Optimizer:
    group = {"params": [weight], "lr": _LR, "momentum": 0.95, "weight_decay": decay}
    return MuonOptimizer([group], [COEFFICIENTS["quintic"](i) for i in range(5)])


_OPTIMIZERS: dict[str, Make] = {"SGD with momentum": _momentum, "AdamW": _adamw, "Muon": _muon}


def _attach(optimizer: torch.optim.Optimizer) -> None:
    WEIGHT_DECAYS.build("cautious").attach([optimizer])


def agnostic() -> Outcome:
    """Compare the weights after a step of several optimisers with Algorithm 1, given the optimiser's own update."""
    worst = 0.0
    for make in _OPTIMIZERS.values():
        generator = torch.Generator().manual_seed(0)
        ours, bare = (nn.Parameter(torch.zeros(8, 8, dtype=torch.float64)) for _ in range(2))
        optimizer, plain = make(ours, _DECAY), make(bare, 0.0)
        _attach(optimizer)
        for _ in range(10):
            x = torch.randn(8, 8, generator=generator, dtype=torch.float64)
            ours.data.copy_(x)
            bare.data.copy_(x)
            gradient = torch.randn(8, 8, generator=generator, dtype=torch.float64)
            ours.grad, bare.grad = gradient, gradient.clone()
            optimizer.step()
            plain.step()
            u = (x - bare.detach()) / _LR
            expected = x - _LR * (u + _DECAY * torch.where(u * x >= 0, x, 0))  # Algorithm 1
            worst = max(worst, (ours.detach() - expected).abs().max().item())
    return Outcome(worst < 1e-12, f"largest difference {worst:.0e} over {', '.join(_OPTIMIZERS)}")


def original_loss() -> Outcome:
    """Minimise a strongly convex quadratic, whose minimum is not at 0, with both kinds of decay."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    curvature = root @ root.T / 12 + 0.5 * torch.eye(12, dtype=torch.float64)
    best = torch.randn(12, generator=generator, dtype=torch.float64)

    def distance(cautious: bool) -> float:
        x = nn.Parameter(torch.zeros(12, dtype=torch.float64))
        optimizer = _decoupled(x)
        if cautious:
            _attach(optimizer)
        for step in range(5000):
            optimizer.param_groups[0]["lr"] = _LR / (1 + step / 100)
            x.grad = curvature @ (x.detach() - best)
            optimizer.step()
        return ((x.detach() - best).norm() / best.norm()).item()

    ours, usual = distance(True), distance(False)
    found = f"distance from the minimum, relative to its norm: cautious {ours:.1e}, decoupled {usual:.1e}"
    return Outcome(ours < 5e-3 and usual > 0.1, found)


class _decoupled(torch.optim.SGD):
    """Gradient descent with decoupled decay: x ← (1 - η λ) x - η g."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__([weight], lr=_LR, weight_decay=_DECAY)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(weight.grad, alpha=-group["lr"])


def small_solutions() -> Outcome:
    """Solve x₁ w₁ + x₂ w₂ = 1 in many random ways, and look which of the solutions are kept.

    Of the line of solutions those between the axes are Pareto-optimal in the magnitudes: elsewhere both can shrink.
    """
    reached: dict[str, int] = {"cautious": 0, "no decay": 0}
    worst = 0.0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(2, generator=generator, dtype=torch.float64)
        start = 3 * torch.randn(2, generator=generator, dtype=torch.float64)
        for name in reached:
            x = _solution(a, start, cautious=name == "cautious")
            worst = max(worst, abs(a @ x - 1).item())
            reached[name] += bool((a * x > -0.02).all())
    found = ", ".join(f"{name} {count} of 12" for name, count in reached.items())
    holds = reached["cautious"] == 12 and reached["no decay"] < 10
    return Outcome(holds and worst < 0.02, f"Pareto-optimal solutions: {found}; largest residual {worst:.0e}")


def _solution(a: Float[Tensor, " 2"], start: Float[Tensor, " 2"], *, cautious: bool) -> Float[Tensor, " 2"]:
    """Return where gradient descent on (a x - 1)² / 2 ends."""
    x = nn.Parameter(start.clone())
    optimizer = _sgd(x, _DECAY if cautious else 0.0)
    if cautious:
        _attach(optimizer)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step / 100)
        x.grad = a * (a @ x.detach() - 1)
        optimizer.step()
    return x.detach()
