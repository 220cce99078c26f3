"""Q-learning with shaped policies, of many learners at once: each acts, is answered, and updates its own tables.

The learner of several trainers (arXiv 2111.08596, Abstract), with the update of its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from axon_advise.shaping import log_sigmoid
from axon_advise.tabular import TransitionTable

__all__ = ["Dynamics", "Learners", "LearningSettings", "Played", "play_episodes", "shaped_logits"]

_AHEAD = 64  # steps whose random numbers are drawn at once


@dataclass(frozen=True)
class LearningSettings:
    """How learners act and learn; see `AdviseTrainer.Config`."""

    gamma: float = 0.9
    alpha: float = 0.05
    temperature: float = 1.5
    limit: int = 500
    several: bool = False


@dataclass
class Learners:
    """The tables of t learners, which `play_episodes` changes in place.

    Attributes:
        q: the value of each action.
        scores: Σ_m w_m Δ_m(s, a) with the present weights, kept up to date with each answer.
        good: h⁺.
        bad: h⁻.
        answers: how many there are in a state, of all trainers.
        weight: w, what each trainer's answers count.
    """

    q: Float[ndarray, "t s a"]
    scores: Float[ndarray, "t s a"]
    good: Int[ndarray, "t s m a"]
    bad: Int[ndarray, "t s m a"]
    answers: Int[ndarray, "t s"]
    weight: Float[ndarray, "t m"]


class Played(NamedTuple):
    """What came of the episodes of each learner."""

    returns: Float[ndarray, "t e"]
    """The sum of the rewards of each episode, not discounted."""
    steps: Int[ndarray, " t"]
    """Actions in all of them."""
    squared_error: Float[ndarray, " t"]
    """The mean squared temporal difference of an action."""


@dataclass(frozen=True)
class Dynamics:
    """What happens around the learners, as tables that are looked up by state and action.

    Attributes:
        table: the environment.
        start: the cumulative probability of each state at the start.
        good: the probability of "good" by group of learners g, state, action and trainer.
        either: that of any answer.
        group: the group of each learner, whose trainers answer alike.
        confidence: by learner, trainers are asked only where the largest probability that their answers so far give
            any action is at most this.
    """

    table: TransitionTable
    start: Float[ndarray, " s"]
    good: Float[ndarray, "g s a m"]
    either: Float[ndarray, "g s a m"]
    group: Int[ndarray, " t"]
    confidence: Float[ndarray, " t"]


def shaped_logits(
    q: Float[ndarray, "... a"], scores: Float[ndarray, "... a"], settings: LearningSettings
) -> Float[ndarray, "... a"]:
    """Return ln π up to a constant, where π ∝ softmax(Q / temperature) · π_F.

    ln π_F is Σ_m w_m Δ_m(a) up to a constant where one action is optimal, and its log sigmoid where several may be.
    """
    return q / settings.temperature + (log_sigmoid(scores) if settings.several else scores)


def play_episodes(
    learners: Learners,
    dynamics: Dynamics,
    settings: LearningSettings,
    episodes: int,
    uniform: Callable[[tuple[int, ...]], Float[ndarray, ...]],
) -> Played:
    """Let each learner play whole episodes, answered and learning after each action.

    A step from s: a ~ π(· | s); the environment gives s′ and r; trainers answer about (s, a); then
    Q(s, a) += α (r + γ Q(s′, argmax π(· | s′)) − Q(s, a)), without the second term where the episode is over. The next
    action is drawn from what was read of s′ for this target.

    Args:
        learners: what is changed.
        dynamics: environment and trainers.
        settings: how they act and learn.
        episodes: of each learner.
        uniform: draws numbers from [0, 1) of a shape; step and learner have numbers of their own, whoever still plays.
    """
    t, s, a = learners.q.shape
    m = learners.weight.shape[1]
    q, scores = learners.q.reshape(t * s, a), learners.scores.reshape(t * s, a)
    answers = learners.answers.reshape(-1)
    counts = learners.good.reshape(-1), learners.bad.reshape(-1)
    world = _Lookup(dynamics.table)
    said_good, said = dynamics.good.reshape(-1, m), dynamics.either.reshape(-1, m)
    asks_everywhere = bool((dynamics.confidence >= 1).all())
    played = Played(np.zeros((t, episodes)), np.zeros(t, dtype=np.int64), np.zeros(t))
    active = np.arange(t)
    done, age, earned = np.zeros(t, dtype=np.int64), np.zeros(t, dtype=np.int64), np.zeros(t)
    step, numbers = 0, np.zeros((0, 0, 0))
    first = uniform((episodes + 1, t))
    state = _start(dynamics.start, first[0])
    row = active * s + state
    values, logits = _read(q, scores, row, settings)
    while len(active):
        if step % _AHEAD == 0:
            numbers = uniform((_AHEAD, 2 + m, t))
        u = numbers[step % _AHEAD][:, active] if len(active) < t else numbers[step % _AHEAD]
        step += 1
        probability = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
        action = (probability <= (u[0] * probability[:, -1])[:, None]).sum(1)
        following, reward, terminated = world.step(state, action, u[1])
        if m:
            key = (dynamics.group[active] * s + state) * a + action
            answered = u[2:].T < said[key]
            if not asks_everywhere:
                shaped = scores[row] - scores[row].max(1, keepdims=True)
                answered &= (1 / np.exp(shaped).sum(1) <= dynamics.confidence[active])[:, None]
            if answered.any():
                answers[row] += answered.sum(1)
                _count(counts, scores, learners.weight, active, row, action, answered, u[2:].T < said_good[key])
        age[active] += 1
        earned[active] += reward
        next_row = active * s + following
        read = _read(q, scores, next_row, settings)
        target = reward + settings.gamma * np.where(terminated, 0.0, _at(read[0], read[1].argmax(1)))
        error = target - q[row, action]
        q[row, action] += settings.alpha * error
        played.squared_error[active] += error * error
        played.steps[active] += 1
        state, row, (values, logits) = following, next_row, read
        over = terminated | (age[active] >= settings.limit)
        if over.any():
            ended = active[over]
            played.returns[ended, done[ended]] = earned[ended]
            done[ended] += 1
            age[ended], earned[ended] = 0, 0.0
            state[over] = _start(dynamics.start, first[done[ended], ended])
            row[over] = ended * s + state[over]
            values[over], logits[over] = _read(q, scores, row[over], settings)
            going = done[active] < episodes
            if not going.all():
                active, state, row, values, logits = (x[going] for x in (active, state, row, values, logits))
    np.divide(played.squared_error, played.steps, out=played.squared_error)
    return played


class _Lookup:
    """The environment's table in the form that a step reads fastest."""

    def __init__(self, table: TransitionTable) -> None:
        self._actions = table.n_actions
        self._cumulative = table.probability.cumsum(-1).reshape(-1, table.following.shape[2])
        self._cumulative /= self._cumulative[:, -1:]
        outcomes = (table.following, table.reward, table.terminated)
        self._outcomes = tuple(part.reshape(-1) for part in outcomes)

    def step(
        self, state: Int[ndarray, " b"], action: Int[ndarray, " b"], uniform: Float[ndarray, " b"]
    ) -> tuple[ndarray, ndarray, ndarray]:
        key = state * self._actions + action
        k = self._cumulative.shape[1]
        at = key * k + (self._cumulative[key] <= uniform[:, None]).sum(1) if k > 1 else key
        following, reward, terminated = self._outcomes
        return following[at], reward[at], terminated[at]


def _count(
    counts: tuple[ndarray, ndarray],
    scores: Float[ndarray, "n a"],
    weight: Float[ndarray, "t m"],
    active: Int[ndarray, " b"],
    row: Int[ndarray, " b"],
    action: Int[ndarray, " b"],
    answered: ndarray,
    good: ndarray,
) -> None:
    """Add answers `(b m)` to the counts and to the scores; no row is there twice."""
    sign = np.where(answered, np.where(good, 1, -1), 0)
    scores[row, action] += (sign * weight[active]).sum(1)
    m, a = answered.shape[1], scores.shape[1]
    place = (row[:, None] * m + np.arange(m)) * a + action[:, None]
    for count, which in zip(counts, (sign > 0, sign < 0), strict=True):
        count[place[which]] += 1


def _read(
    q: Float[ndarray, "n a"], scores: Float[ndarray, "n a"], row: Int[ndarray, " b"], settings: LearningSettings
) -> tuple[ndarray, ndarray]:
    values = q[row]
    return values, shaped_logits(values, scores[row], settings)


def _at(values: Float[ndarray, "b a"], action: Int[ndarray, " b"]) -> Float[ndarray, " b"]:
    return values[np.arange(len(values)), action]


def _start(cumulative: Float[ndarray, " s"], uniform: Float[ndarray, " b"]) -> Int[ndarray, " b"]:
    return np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
