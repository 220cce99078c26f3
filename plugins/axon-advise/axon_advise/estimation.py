"""How reliable each trainer is, from its answers alone: expectation maximisation, and variational inference.

Trainer m is right with probability C_m (its consistency), independently for each answer. Which actions are optimal is
hidden; answers of all trainers and a prior say how probable it is. Many independent trials are computed at once. The
paper estimates each trainer's reliability (arXiv 2111.08596, Abstract); the formulas are those of its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from numpy import ndarray

from axon_advise.shaping import any_optimal, log_odds, log_softmax, one_optimal, trainer_scores

__all__ = ["Answers", "Beliefs", "expectation_maximisation", "log_likelihood", "variational_inference"]

LEAST = 1e-3
"""Estimates are clipped to LEAST … 1 − LEAST, and so are the mean logarithms of probabilities to ln LEAST … 0."""


@dataclass(frozen=True)
class Answers:
    """The answers of all trainers in the states r where there are any, of all trials t, ordered by trial.

    Attributes:
        delta: Δ = h⁺ − h⁻ by state, trainer m and action a.
        good: Σ_{s,a} h⁺ by trial and trainer.
        bad: Σ_{s,a} h⁻ by trial and trainer.
        log_prior: ln p(a) by state, what is known without the answers; normalised.
        trial: the trial of each state.
        several: whether any number of actions may be optimal in a state; otherwise exactly one is.
    """

    delta: Float[ndarray, "r m a"]
    good: Float[ndarray, "t m"]
    bad: Float[ndarray, "t m"]
    log_prior: Float[ndarray, "r a"]
    trial: Int[ndarray, " r"]
    several: bool = False

    @classmethod
    def of(
        cls,
        good: Real[ndarray, "r m a"],
        bad: Real[ndarray, "r m a"],
        log_prior: Float[ndarray, "r a"],
        trial: Int[ndarray, " r"] | None = None,
        trials: int = 1,
        *,
        several: bool = False,
    ) -> Self:
        """Return the answers from the counts h⁺ and h⁻; without `trial`, they are of a single one."""
        trial = np.zeros(len(good), dtype=np.int64) if trial is None else trial
        delta = np.subtract(good, bad, dtype=np.float64)
        praise, blame = (_by_trial(counts.sum(-1, dtype=np.float64), trial, trials) for counts in (good, bad))
        return cls(delta, praise, blame, log_softmax(log_prior), trial, several)

    def posterior(self, weight: Float[ndarray, "t m"]) -> Float[ndarray, "r a"]:
        """Return the probability that each action is optimal (the E step), given the trainers' weights."""
        scores = trainer_scores(self.delta, weight[self.trial])
        return (any_optimal if self.several else one_optimal)(scores, self.log_prior)

    def expected_right(self, posterior: Float[ndarray, "r a"]) -> Float[ndarray, "t m"]:
        """Return Σ_{s,a} [P h⁺ + (1 − P) h⁻], the expected number of right answers."""
        return self.bad + _by_trial(np.einsum("rma,ra->rm", self.delta, posterior), self.trial, len(self.bad))


class Beliefs(NamedTuple):
    """What is believed about each trainer m in each trial t."""

    consistency: Float[ndarray, "t m"]
    """The estimate of C: most likely, or the mean of its distribution."""
    weight: Float[ndarray, "t m"]
    """What an answer counts in `trainer_scores`: ln C − ln(1 − C), or its mean."""


def expectation_maximisation(
    answers: Answers, start: Float[ndarray, "t m"], *, rounds: int = 20, tolerance: float = 1e-3
) -> Beliefs:
    """Return the most likely consistencies, from `start`; no round lowers `log_likelihood`.

    E: P(a) is the posterior, given C. M: C_m = Σ_{s,a} [P h⁺ + (1 − P) h⁻] / Σ_{s,a} (h⁺ + h⁻). A trial ends after
    `rounds`, or where no C changes by `tolerance`. A trainer without answers keeps its start, as all do at C = ½ where
    nothing else tells actions apart.
    """
    consistency, total = start.copy(), answers.good + answers.bad
    going = np.ones(len(start), dtype=bool)
    for _ in range(rounds):
        right = answers.expected_right(answers.posterior(log_odds(consistency)))
        found = np.clip(np.divide(right, total, out=start.copy(), where=total > 0), LEAST, 1 - LEAST)
        found = np.where(going[:, None] & (total > 0), found, consistency)
        going &= np.abs(found - consistency).max(1, initial=0.0) >= tolerance
        consistency = found
        if not going.any():
            break
    return Beliefs(consistency, log_odds(consistency))


def variational_inference(
    answers: Answers,
    start: Float[ndarray, "t m"],
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    rounds: int = 20,
    tolerance: float = 1e-3,
) -> Beliefs:
    """Return the means under q(C_m) = Beta(α + R_m, β + W_m), with R and W the expected right and wrong answers.

    q(a) is the posterior with ln C → ψ(α + R) − ψ(α + β + R + W) and ln(1 − C) → ψ(β + W) − ψ(α + β + R + W).

    Args:
        answers: what the trainers answered.
        start: the weights of the first round.
        prior: α and β.
        rounds: rounds at most.
        tolerance: a trial ends where no mean changes by this.
    """
    (alpha, beta), total, weight = prior, answers.good + answers.bad, start.copy()
    mean, going = np.full_like(start, np.nan), np.ones(len(start), dtype=bool)
    for _ in range(rounds):
        right = alpha + answers.expected_right(answers.posterior(weight))
        right = np.clip(right, alpha, alpha + total)  # rounding may have left it
        wrong = alpha + beta + total - right
        found = right / (right + wrong)
        both = _digamma(right + wrong)
        new = np.clip(_digamma(right) - both, np.log(LEAST), 0) - np.clip(_digamma(wrong) - both, np.log(LEAST), 0)
        mean, before = np.where(going[:, None], found, mean), mean
        weight = np.where(going[:, None], new, weight)
        going &= ~(np.abs(mean - before).max(1, initial=0.0) < tolerance)
        if not going.any():
            break
    return Beliefs(mean, weight)


def log_likelihood(answers: Answers, consistency: Float[ndarray, "t m"]) -> Float[ndarray, " t"]:
    """Return ln Π_s Σ_o p(o) Π_{m,a} P(h⁺, h⁻ | o, C) of each trial; o is what is optimal in the state s."""
    for_, against = np.log(consistency), np.log1p(-consistency)
    scores = trainer_scores(answers.delta, (for_ - against)[answers.trial])
    if answers.several:
        with np.errstate(divide="ignore"):
            other = np.log(-np.expm1(answers.log_prior))
        states = np.logaddexp(answers.log_prior + scores, other).sum(-1)
    else:
        scores = scores + answers.log_prior
        states = np.logaddexp.reduce(scores, axis=-1)
    # Every answer counts as if its action were not optimal; the scores hold what changes for those that are.
    fixed = (answers.bad * for_ + answers.good * against).sum(1)
    return fixed + _by_trial(states[:, None], answers.trial, len(consistency))[:, 0]


def _by_trial(rows: Float[ndarray, "r m"], trial: Int[ndarray, " r"], trials: int) -> Float[ndarray, "t m"]:
    """Sum rows, which are ordered by trial, over those of each trial."""
    total = np.zeros((trials, rows.shape[1]))
    if len(rows):
        starts = np.flatnonzero(np.diff(trial, prepend=-1))
        total[trial[starts]] = np.add.reduceat(rows, starts, axis=0)
    return total


def _digamma(x: Float[ndarray, "t m"]) -> Float[ndarray, "t m"]:
    return torch.digamma(torch.from_numpy(x)).numpy()
