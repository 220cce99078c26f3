"""A reward for each of a few items, from comparisons by raters of unknown reliability.

The probability of a right answer is that of the Bradley–Terry model (arXiv 2305.18290, Section 3, Eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from axon_advise.raters.mixture import labels_logprob, reliability_update, right_posterior
from axon_core import ConfigError, DataError

__all__ = ["ItemLabels", "ItemRewards", "fit_bradley_terry", "fit_items", "fit_items_by_em"]

_PRECISION = 1e-6
"""Precision of a normal prior of rewards: it moves no estimate visibly, but keeps those finite that nothing bounds."""


@dataclass(frozen=True)
class ItemLabels:
    """Who preferred which item, and how often; one row for each rater and ordered pair of items.

    Attributes:
        better: the number of the item that was preferred.
        worse: the number of the other one.
        rater: the number of who said so.
        count: how often.
    """

    better: Int[Tensor, " n"]
    worse: Int[Tensor, " n"]
    rater: Int[Tensor, " n"]
    count: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        """Check them. Raises `DataError` if there are none, a count is not positive, or an item beats itself."""
        if not len(self.count):
            raise DataError("reliabilities are estimated from labels, but there are none; give at least one")
        if not bool((self.count > 0).all()) or not bool(self.count.isfinite().all()):
            raise DataError(f"counts of labels must be positive numbers, got {self.count.min().item():g}; leave it out")
        if same := (self.better == self.worse).nonzero().flatten().tolist():
            item = int(self.better[same[0]])
            raise DataError(f"a label must compare two different items, but label {same[0]} has item {item} twice")

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return int(torch.maximum(self.better, self.worse).max()) + 1

    @property
    def n_raters(self) -> int:
        """How many raters there are."""
        return int(self.rater.max()) + 1


@dataclass(frozen=True)
class ItemRewards:
    """What was estimated.

    Attributes:
        rewards: r by item; the first has 0.
        reliability: C by rater.
        objective: the log-likelihood plus the logarithms of the priors without their constants, in nats.
        anchor: what chose between the two mirror images: the `prior`, `trusted` raters, or the `pooled` fit; None
            before one was chosen.
    """

    rewards: Float[Tensor, " i"]
    reliability: Float[Tensor, " m"]
    objective: float
    anchor: Literal["prior", "trusted", "pooled"] | None = None

    def mirrored(self) -> ItemRewards:
        """Return the mirror image (−r, 1 − C), in which all labels are as probable."""
        return replace(self, rewards=-self.rewards, reliability=1 - self.reliability)


def fit_items_by_em(
    labels: ItemLabels,
    start: float = 0.75,
    prior: tuple[float, float] = (1.0, 1.0),
    trusted: Float[Tensor, " m"] | None = None,
    rounds: int = 5000,
    tolerance: float = 1e-8,
) -> ItemRewards:
    """Maximise Σ ln [C σ(Δ) + (1 − C) σ(−Δ)] by expectation maximisation, from one start.

    The E step gives each label γ = `right_posterior`; the M step gives C = `reliability_update`, and r as the
    Bradley–Terry fit with soft labels γ. No round lowers the objective. At a start of ½, nothing moves.

    Args:
        labels: who preferred what.
        start: C of all raters at the start.
        prior: α and β of the Beta distribution of C.
        trusted: C of raters for whom it is known, NaN for all others.
        rounds: the most rounds.
        tolerance: the rounds end when no reward and no reliability has moved by more.
    """
    fixed = torch.full((labels.n_raters,), torch.nan, dtype=torch.float64) if trusted is None else trusted
    reliability = torch.where(fixed.isnan(), start, fixed)
    rewards = fit_bradley_terry(labels, torch.full_like(labels.count, start))
    for _ in range(rounds):
        before = torch.cat((rewards, reliability))
        delta = rewards[labels.better] - rewards[labels.worse]
        right = right_posterior(delta, reliability[labels.rater])
        updated = reliability_update(right, labels.rater, labels.count, labels.n_raters, prior)
        reliability = torch.where(fixed.isnan(), updated, fixed)
        rewards = fit_bradley_terry(labels, right, rewards)
        if (torch.cat((rewards, reliability)) - before).abs().max() <= tolerance:
            break
    delta = rewards[labels.better] - rewards[labels.worse]
    found = labels_logprob(delta, labels.rater, labels.count, reliability, prior) + _log_prior(rewards)
    return ItemRewards(rewards - rewards[0], reliability, found.item())


def fit_items(
    labels: ItemLabels, prior: tuple[float, float] = (9.0, 1.0), trusted: Float[Tensor, " m"] | None = None
) -> ItemRewards:
    """Return the better of two fits, from C = ¾ and from C = ¼, with the mirror image chosen and said in `anchor`.

    (r, C) and (−r, 1 − C) make all labels equally probable. A prior that is not symmetric, or trusted raters, tell
    them apart; otherwise the image is taken whose rewards agree with the pooled fit, which trusts everybody: most
    labels are then taken to be right.

    Args:
        labels: who preferred what.
        prior: α and β of the Beta distribution of C; with α > β raters are taken to be right rather than wrong.
        trusted: C of raters for whom it is known, NaN for all others.

    Raises:
        ConfigError: α or β is below 1, so that EM has no maximum to find.
    """
    if min(prior) < 1:
        raise ConfigError([(("prior",), f"α and β must be at least 1, got {prior}")])
    fits = [fit_items_by_em(labels, start, prior, trusted) for start in (0.75, 0.25)]
    best = max(fits, key=lambda fit: fit.objective)
    if trusted is not None and not bool(trusted.isnan().all()):
        return replace(best, anchor="trusted")
    if prior[0] != prior[1]:
        return replace(best, anchor="prior")
    pooled = fit_bradley_terry(labels, torch.ones_like(labels.count))
    agreement = (pooled - pooled.mean()) @ (best.rewards - best.rewards.mean())
    return replace(best if agreement >= 0 else best.mirrored(), anchor="pooled")


def fit_bradley_terry(
    labels: ItemLabels, right: Float[Tensor, " n"], start: Float[Tensor, " i"] | None = None
) -> Float[Tensor, " i"]:
    """Maximise Σ count [γ ln σ(Δ) + (1 − γ) ln σ(−Δ)] over r, with r_0 = 0, by Newton's method.

    The sum is concave; a step that would lower it is halved. With every γ = 1 it is the usual Bradley–Terry fit.

    Args:
        labels: who preferred what.
        right: γ of each label.
        start: r to start from; by default 0.
    """
    n = labels.n_items
    r = torch.zeros(n, dtype=torch.float64) if start is None else start.clone()

    def objective(rewards: Tensor) -> float:
        delta = rewards[labels.better] - rewards[labels.worse]
        soft = right * logsigmoid(delta) + (1 - right) * logsigmoid(-delta)
        return ((labels.count * soft).sum() + _log_prior(rewards)).item()

    value = objective(r)
    for _ in range(100):
        p = (r[labels.better] - r[labels.worse]).sigmoid()
        push, curve = labels.count * (right - p), labels.count * p * (1 - p)
        slope = torch.zeros_like(r).index_add(0, labels.better, push).index_add(0, labels.worse, -push) - _PRECISION * r
        hessian = torch.eye(n, dtype=torch.float64) * _PRECISION
        for i, j, sign in (
            (labels.better, labels.better, 1),
            (labels.worse, labels.worse, 1),
            (labels.better, labels.worse, -1),
            (labels.worse, labels.better, -1),
        ):
            hessian.index_put_((i, j), sign * curve, accumulate=True)
        step = torch.zeros_like(r)
        step[1:] = torch.linalg.solve(hessian[1:, 1:], slope[1:])
        while (found := objective(r + step)) < value and step.abs().max() > 1e-12:
            step = step / 2
        if found <= value:
            break
        r, value = r + step, found
    return r


def _log_prior(rewards: Float[Tensor, " i"]) -> Float[Tensor, ""]:
    return -_PRECISION / 2 * rewards.square().sum()
