"""Policy shaping: what counts of "good" and "bad" say about which action is right.

The setting is that of the paper (arXiv 2111.08596, Abstract); the formulas are those of its authors' code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

__all__ = ["any_optimal", "log_odds", "log_sigmoid", "log_softmax", "one_optimal", "trainer_scores"]


def log_odds(consistency: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """Return ln C − ln(1 − C): the weight of a trainer whose answers are right with probability C in (0, 1).

    It is negative for a trainer that is mostly wrong, so that its answers count in the opposite sense.
    """
    return np.log(consistency) - np.log1p(-consistency)


def trainer_scores(delta: Float[ndarray, "... m a"], weight: Float[ndarray, "... m"]) -> Float[ndarray, "... a"]:
    """Return Σ_m w_m Δ_m(a), the sum over trainers m.

    Args:
        delta: Δ, the number of "good" less that of "bad", by trainer and action.
        weight: w, the `log_odds` of each trainer.
    """
    return np.einsum("...ma,...m->...a", delta, weight)


def one_optimal(scores: Float[ndarray, "... a"], log_prior: Float[ndarray, "... a"] | float = 0.0) -> ndarray:
    """Return the probability that each action is the only optimal one, `(… a)`.

    P(a) ∝ p(a) Π_m C_m^Δ_m(a) (1 − C_m)^Σ_{b≠a} Δ_m(b) ∝ p(a) exp Σ_m Δ_m(a) ln(C_m / (1 − C_m)).

    Args:
        scores: the `trainer_scores`.
        log_prior: ln p, which need not be normalised; uniform if it is left out.
    """
    return np.exp(log_softmax(scores + log_prior))


def any_optimal(scores: Float[ndarray, "... a"], log_prior: Float[ndarray, "... a"] | None = None) -> ndarray:
    """Return the probability that each action is optimal, where any number of them may be, `(… a)`.

    P(a) = p(a) Π_m C_m^Δ_m(a) / (p(a) Π_m C_m^Δ_m(a) + (1 − p(a)) Π_m (1 − C_m)^Δ_m(a)).

    Args:
        scores: the `trainer_scores`.
        log_prior: ln p, with p the probability of each action alone; ½ if it is left out.
    """
    if log_prior is None:
        return np.exp(log_sigmoid(scores))
    with np.errstate(divide="ignore"):
        against = np.log(-np.expm1(np.minimum(log_prior, 0.0)))  # ln(1 − p); −∞ for p = 1
    return np.exp(log_sigmoid(scores + log_prior - against))


def log_softmax(scores: Float[ndarray, "... a"]) -> Float[ndarray, "... a"]:
    """Return ln(exp x(a) / Σ_b exp x(b)) over the last axis."""
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def log_sigmoid(x: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """Return ln(1 / (1 + exp(−x))), without overflow."""
    return -np.logaddexp(0.0, -x)
