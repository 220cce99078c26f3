"""Sources of feedback, in a registry of their own: who says "good" or "bad" of an action, and how often.

Trainers have different skills, and some are adversarial (arXiv 2111.08596, Abstract).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from pydantic import Field

from axon_core import ConfigError, config
from axon_core.registry import Registry

__all__ = ["FEEDBACKS", "AnswerRates", "Changing", "Contrary", "FeedbackSource", "Oracle", "Silent"]


class AnswerRates(NamedTuple):
    """The probability of each answer to an action in a state; with what remains, there is none."""

    good: Float[ndarray, "s a"]
    """Of "good"."""
    bad: Float[ndarray, "s a"]
    """Of "bad"."""


class FeedbackSource(ABC):
    """Someone who watches and answers: a trainer, in the paper's words (arXiv 2111.08596, Abstract).

    An answer depends on the state, the action and how many episodes the learner has seen, and on nothing else.
    """

    class Config(config.Config):
        """Options of a source."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def rates(self, optimal: Bool[ndarray, "s a"], episode: int) -> AnswerRates:
        """Return how it answers about each action.

        Args:
            optimal: which actions are right.
            episode: the number of whole episodes before; asked again for each step of the training.
        """

    def consistency(self, episode: int) -> float | None:
        """Return the true probability that its answer is right, for reports; by default it is not known."""
        return None


class Oracle(FeedbackSource):
    """Answers with probability L, rightly with probability C: is the action optimal? (arXiv 2111.08596, Abstract)."""

    class Config(FeedbackSource.Config):
        """How often, and how well."""

        speaks: float = Field(default=0.2, ge=0, le=1)
        """L, the probability of an answer."""
        right: float = Field(default=0.9, ge=0, le=1)
        """C, the probability that the answer is right, the trainer's consistency; below ½ it is adversarial."""

    config: Config

    def rates(self, optimal: Bool[ndarray, "s a"], episode: int) -> AnswerRates:
        """Return L·C for the right answer and L·(1 − C) for the wrong one."""
        right = self.consistency(episode)
        good = np.where(optimal, right, 1 - right)
        return AnswerRates(self.config.speaks * good, self.config.speaks * (1 - good))

    def consistency(self, episode: int) -> float:
        """Return C."""
        return self.config.right


class Contrary(Oracle):
    """An oracle that always says the opposite of what is right (arXiv 2111.08596, Abstract)."""

    class Config(FeedbackSource.Config):
        """How often."""

        speaks: float = Field(default=0.2, ge=0, le=1)
        """L, the probability of an answer."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - it needs no `right`

    def consistency(self, episode: int) -> float:
        """Return 0."""
        return 0.0


class Changing(Oracle):
    """An oracle whose consistency moves linearly from `right` to `later` (arXiv 2111.08596, Abstract)."""

    class Config(Oracle.Config):
        """How it changes."""

        later: float = Field(default=0.5, ge=0, le=1)
        """The consistency after `over` episodes."""
        over: int = Field(default=500, ge=1)
        """Episodes of the change."""

    config: Config

    def consistency(self, episode: int) -> float:
        """Return C before this episode."""
        moved = min(1.0, episode / self.config.over)
        return (1 - moved) * self.config.right + moved * self.config.later


class Silent(FeedbackSource):
    """Never answers (arXiv 2111.08596, Abstract)."""

    def rates(self, optimal: Bool[ndarray, "s a"], episode: int) -> AnswerRates:
        """Return zeros."""
        return AnswerRates(np.zeros(optimal.shape), np.zeros(optimal.shape))


FEEDBACKS: Registry[FeedbackSource] = Registry("feedback", FeedbackSource)
"""Sources of feedback by key; a plugin adds one in the entry-point group `axon.v1.feedback`."""


def checked_rates(source: FeedbackSource, optimal: Bool[ndarray, "s a"], episode: int) -> AnswerRates:
    """Return the rates of a source. Raises `ConfigError` if they are not probabilities of these actions."""
    good, bad = (np.asarray(rate, dtype=np.float64) for rate in source.rates(optimal, episode))
    fits = good.shape == bad.shape == optimal.shape
    if not fits or not ((good >= 0) & (bad >= 0) & (good + bad <= 1 + 1e-9)).all():
        raise ConfigError(
            [
                (
                    (),
                    f"the feedback source {type(source).__name__} must give probabilities for each of {optimal.shape} "
                    "states and actions, whose sum is at most 1",
                )
            ]
        )
    return AnswerRates(good, bad)
