"""The claims of the paper's card, checked on its Pac-Man grid with fewer learners and episodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from axon_advise.trainer import AdviseTrainer
from axon_core.papers import Outcome
from axon_core.training import Recipe, build_trainer, fit

__all__ = ["adversaries", "aggregation", "reliabilities"]

_LEARNERS, _STEPS, _EPISODES = 20, 40, 10
_ENOUGH = 500
_ERRORS = 3.0
_NEAR = 0.02


def aggregation() -> Outcome:
    """Compare the return of all episodes without trainers, with one, and with that one and three worse ones."""
    sets = {"none": _oracles(), "one": _oracles(0.7), "four": _oracles(0.7, 0.7, 0.6, 0.6)}
    trainer = _trained(sets)
    returns = {name: _returns(trainer, name) for name in sets}
    right = {name: _accuracy(trainer, name) for name in ("one", "four")}
    passed = right["four"] > right["one"] and _better(returns, "four", "one") and _better(returns, "one", "none")
    return Outcome(
        passed,
        f"mean return {_shown(returns)}; answers alone find the optimal action in {right['one']:.0%} of the answered "
        f"states with one trainer, in {right['four']:.0%} with four",
    )


def reliabilities() -> Outcome:
    """Compare the estimated consistencies of eight trainers with the true ones, as means over learners."""
    truth = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
    trainer = _trained({"eight": _oracles(*truth)})
    report = trainer.reports()["eight"]
    found = [x.reliability if x.reliability is not None else math.nan for x in report.trainers]
    worst = max(abs(value - true) for value, true in zip(found, truth, strict=True))
    enough = min(x.answers for x in report.trainers) >= _ENOUGH
    return Outcome(
        enough and worst <= _NEAR,
        f"estimates {', '.join(f'{value:.2f}' for value in found)} of {', '.join(map(str, truth))}; the largest "
        f"difference is {worst:.3f}",
    )


def adversaries() -> Outcome:
    """Compare trainers of whom two are adversarial with the good one alone, with a majority vote, and with none."""
    sets = {"none": _oracles(), "alone": _oracles(0.9), "with": _oracles(0.9, 0.2, 0.2)}
    sets["majority"] = {**sets["with"], "reliability": {"type": "equal", "value": 0.8}}
    returns = {name: _returns(trainer, name) for trainer in [_trained(sets)] for name in sets}
    passed = all(_better(returns, "with", other) for other in ("none", "alone", "majority"))
    return Outcome(passed, f"mean return {_shown(returns)}")


def _oracles(*right: float) -> dict[str, Any]:
    return {"trainers": [{"type": "oracle", "right": c} for c in right]}


def _trained(sets: dict[str, Any]) -> AdviseTrainer:
    tables = {
        "data": {"environment": {"type": "pacman"}, "sets": sets},
        "trainer": {"type": "advise", "batch_size": _LEARNERS, "steps": _STEPS, "episodes": _EPISODES, "evaluated": 0},
    }
    trainer = build_trainer(Recipe.of(tables, "claim", "the claim"))
    assert isinstance(trainer, AdviseTrainer)
    fit(trainer)
    return trainer


def _returns(trainer: AdviseTrainer, name: str) -> np.ndarray:
    """Return the mean return of all episodes of each learner of a set."""
    return np.stack([row.numpy() for row in trainer.history["returns"]])[:, trainer.rows(name)].mean(0)


def _accuracy(trainer: AdviseTrainer, name: str) -> float:
    """Return how often the action that the answers alone make most likely is optimal, over the answered states."""
    rows = trainer.rows(name)
    learner, state = np.nonzero(trainer.tables.answers[rows].numpy())
    best = trainer.learners().scores[rows][learner, state].argmax(-1)
    return float(trainer.optimal[state, best].mean())


def _better(returns: dict[str, np.ndarray], one: str, other: str) -> bool:
    """Return whether one mean is higher by more than three standard errors of the difference."""
    a, b = returns[one], returns[other]
    return bool(a.mean() - b.mean() > _ERRORS * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)))


def _shown(returns: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {values.mean():.0f} ± {values.std(ddof=1):.0f}" for name, values in returns.items())
