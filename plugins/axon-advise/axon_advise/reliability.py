"""What the learner believes of its trainers' reliability, in a registry: learnt, known, or the same for all.

The paper learns it (arXiv 2111.08596, Abstract); the others are what it is compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field, PositiveFloat

from axon_advise.estimation import Answers, Beliefs, expectation_maximisation, variational_inference
from axon_advise.shaping import log_odds
from axon_core import Count, config
from axon_core.registry import Registry

__all__ = ["RELIABILITIES", "Equal", "Known", "LearntByEM", "LearntByVI", "Reliability"]

_INSIDE = 1e-3


class Reliability(ABC):
    """How much the learner believes each trainer."""

    class Config(config.Config):
        """Options of a belief."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def start(self, truth: Sequence[float | None]) -> Float[ndarray, " m"]:
        """Return the consistencies that are believed first; `truth` has the true ones, where they are known."""

    @abstractmethod
    def update(self, answers: Answers, beliefs: Beliefs) -> Beliefs:
        """Return what is believed after all answers so far."""


class LearntByEM(Reliability):
    """Most likely consistencies, by `expectation_maximisation` from the ones before (arXiv 2111.08596, Abstract)."""

    class Config(Reliability.Config):
        """Where it starts and ends."""

        first: float = Field(default=0.5, gt=0, lt=1)
        """The consistency of all trainers before any answer: at ½ their answers count nothing."""
        rounds: Count = 20
        """Rounds of E and M at most."""
        tolerance: PositiveFloat = 1e-3
        """A change of all consistencies below this ends the rounds."""

    config: Config

    def start(self, truth: Sequence[float | None]) -> Float[ndarray, " m"]:
        """Return `first` for all."""
        return np.full(len(truth), self.config.first)

    def update(self, answers: Answers, beliefs: Beliefs) -> Beliefs:
        """Return the estimates after at most `rounds`."""
        c = self.config
        return expectation_maximisation(answers, beliefs.consistency, rounds=c.rounds, tolerance=c.tolerance)


class LearntByVI(LearntByEM):
    """Distributions of the consistencies, by `variational_inference` (arXiv 2111.08596, Abstract)."""

    class Config(LearntByEM.Config):
        """The prior, and where it starts and ends."""

        alpha: PositiveFloat = 1.0
        """α of the prior Beta(α, β): as if α right answers had been seen. (9, 1) trusts trainers beforehand."""
        beta: PositiveFloat = 1.0
        """β of the prior: as if β wrong answers had been seen."""

    config: Config

    def start(self, truth: Sequence[float | None]) -> Float[ndarray, " m"]:
        """Return the prior's mean for all."""
        return np.full(len(truth), self.config.alpha / (self.config.alpha + self.config.beta))

    def update(self, answers: Answers, beliefs: Beliefs) -> Beliefs:
        """Return means and mean log odds after at most `rounds`."""
        c = self.config
        prior = (c.alpha, c.beta)
        return variational_inference(answers, beliefs.weight, prior, rounds=c.rounds, tolerance=c.tolerance)


class Equal(Reliability):
    """The same consistency for all trainers, whatever they answer: a majority vote (arXiv 2111.08596, Abstract)."""

    class Config(Reliability.Config):
        """How much they are believed."""

        value: float = Field(default=0.8, gt=0, lt=1)
        """The consistency of every trainer."""

    config: Config

    def start(self, truth: Sequence[float | None]) -> Float[ndarray, " m"]:
        """Return `value` for all."""
        return np.full(len(truth), self.config.value)

    def update(self, answers: Answers, beliefs: Beliefs) -> Beliefs:
        """Return the same beliefs."""
        return beliefs


class Known(Reliability):
    """The true consistencies, a bound on what can be learnt; ½ if not known (arXiv 2111.08596, Abstract)."""

    def start(self, truth: Sequence[float | None]) -> Float[ndarray, " m"]:
        """Return the true consistencies, not nearer to 0 and 1 than 0.001."""
        return np.clip([0.5 if c is None else c for c in truth], _INSIDE, 1 - _INSIDE).astype(np.float64)

    def update(self, answers: Answers, beliefs: Beliefs) -> Beliefs:
        """Return the same beliefs."""
        return beliefs


RELIABILITIES: Registry[Reliability] = Registry("reliability", Reliability)
"""Beliefs about trainers by key; a plugin adds one in the entry-point group `axon.v1.reliability`."""


def first_beliefs(consistency: Float[ndarray, "t m"]) -> Beliefs:
    """Return the beliefs of consistencies."""
    return Beliefs(consistency, log_odds(consistency))
