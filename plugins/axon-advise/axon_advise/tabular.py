"""Environments whose dynamics are tables: transitions, the values of all states, the optimal actions.

Values serve the trainers who know what is right, and measure what learners reach (arXiv 2111.08596, Abstract).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from axon_core import ContractError, Count
from axon_ppo import Environment, Transition

__all__ = ["TabularEnvironment", "TransitionTable", "expected_return", "optimal_actions", "value_iteration"]

_ROUNDING = 1e-9
_SWEEPS = 20_000


@dataclass(frozen=True)
class TransitionTable:
    """What each action does in each state: k possible outcomes, of which unused ones have probability 0.

    Attributes:
        following: the next state.
        probability: of each outcome; their sum is 1.
        reward: what the outcome earns.
        terminated: whether it ends the episode, so that nothing more can be earned.

    Raises:
        ContractError: shapes differ, a number is not finite, or probabilities do not add up to 1.
    """

    following: Int[ndarray, "s a k"]
    probability: Float[ndarray, "s a k"]
    reward: Float[ndarray, "s a k"]
    terminated: Bool[ndarray, "s a k"]

    def __post_init__(self) -> None:
        shape = self.following.shape
        parts = {"probability": self.probability, "reward": self.reward, "terminated": self.terminated}
        for name, part in parts.items():
            if part.shape != shape or len(shape) != 3 or 0 in shape:
                raise ContractError(f"a transition table's {name} must have the shape s a k, got {part.shape}, {shape}")
        if not np.isfinite(self.reward).all():
            state, action, _ = np.argwhere(~np.isfinite(self.reward))[0]
            value = self.reward[state, action].tolist()
            raise ContractError(
                f"rewards must be finite numbers, got {value} in state {state} for action {action}: correct the "
                "environment, as one such reward would spread to all values"
            )
        if (self.probability < 0).any() or (np.abs(self.probability.sum(-1) - 1) > _ROUNDING).any():
            raise ContractError("the probabilities of an action's outcomes must be at least 0 and add up to 1")
        if self.following.min() < 0 or self.following.max() >= shape[0]:
            raise ContractError(f"the next states must be numbers from 0 to {shape[0] - 1}")

    @property
    def n_states(self) -> int:
        """How many states s there are."""
        return self.following.shape[0]

    @property
    def n_actions(self) -> int:
        """How many actions a there are."""
        return self.following.shape[1]


class TabularEnvironment(Environment):
    """An environment of which a table says everything: states are numbers, and so are actions.

    It only adds to `axon_ppo.Environment` what a batch of learners needs to act without a call for each episode. The
    observation is a state's `observe`, by default one-hot.

    Attributes:
        table: what each action does.
        start: the probability of each state at the start of an episode, `(s)`.
        actions: the names of the actions.
    """

    class Config(Environment.Config):
        """What every such environment has."""

        limit: Count = 500
        """Actions after which an episode is cut off."""

    config: Config
    table: TransitionTable
    start: Float[ndarray, " s"]
    actions: Sequence[str]

    def __init__(self, config: Config) -> None:
        self.config = config
        self.table, self.start = self.build()
        self.n_actions = self.table.n_actions
        self.n_observed = self.observe(torch.zeros(1, dtype=torch.long)).shape[1]
        self.actions = [str(action) for action in range(self.n_actions)]
        self._state = torch.zeros(0, dtype=torch.long)
        self._age = torch.zeros(0, dtype=torch.long)
        self._generators: list[np.random.Generator] = []

    @abstractmethod
    def build(self) -> tuple[TransitionTable, Float[ndarray, " s"]]:
        """Return the table, and the probability of each state at the start. Raises `ConfigError` for bad options."""

    def observe(self, states: Int[Tensor, " b"]) -> Float[Tensor, "b o"]:
        """Return what is seen in states."""
        return torch.nn.functional.one_hot(states, self.table.n_states).float()

    def draw(self, state: int) -> str:
        """Return a state as text, for a person who watches; by default its number."""
        return f"state {state}"

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "b o"]:
        """Start again with one episode for each seed."""
        self._state, self._age = (torch.zeros(len(seeds), dtype=torch.long) for _ in range(2))
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        return torch.stack([self.restart(row, seed) for row, seed in enumerate(seeds)])

    def restart(self, row: int, seed: int) -> Float[Tensor, " o"]:
        """Start another episode in one row."""
        self._generators[row] = np.random.default_rng(seed)
        self._age[row] = 0
        self._state[row] = int(draw_outcome(np.cumsum(self.start), self._generators[row].random()))
        return self.observe(self._state[row : row + 1])[0]

    def step(self, actions: Int[Tensor, " b"]) -> Transition:
        """Act in all rows."""
        state, action = self._state.numpy(), actions.numpy()
        uniform = np.array([generator.random() for generator in self._generators])
        outcome = draw_outcome(np.cumsum(self.table.probability[state, action], -1), uniform)
        at = (state, action, outcome)
        self._state, self._age = torch.from_numpy(self.table.following[at].copy()), self._age + 1
        terminated = torch.from_numpy(self.table.terminated[at].copy())
        return Transition(
            self.observe(self._state),
            torch.from_numpy(self.table.reward[at].copy()).float(),
            terminated,
            ~terminated & (self._age >= self.config.limit),
        )


def draw_outcome(cumulative: Float[ndarray, "... k"], uniform: Float[ndarray, ...] | float) -> Int[ndarray, ...]:
    """Return the index that a number from [0, 1) selects; `cumulative` need not end with exactly its total."""
    total = cumulative[..., -1:]
    return (cumulative <= np.asarray(uniform)[..., None] * total).sum(-1)


def value_iteration(table: TransitionTable, gamma: float, tolerance: float = 1e-10) -> Float[ndarray, "s a"]:
    """Return Q*(s, a) = Σ_k p_k (r_k + γ (1 − terminated_k) max_b Q*(s'_k, b)), to `tolerance`.

    Raises:
        ContractError: the values grow without bound, as where an endless episode earns at γ = 1.
    """
    earned = (table.probability * table.reward).sum(-1)
    weight = gamma * table.probability * ~table.terminated
    q = np.zeros(table.following.shape[:2])
    for _ in range(_SWEEPS):
        new = earned + (weight * q.max(1)[table.following]).sum(-1)
        if np.abs(new - q).max() <= tolerance:
            return new
        q = new
    raise ContractError(f"the values do not converge for γ = {gamma}: use a smaller γ, or end every episode")


def optimal_actions(q: Float[ndarray, "s a"], *, several: bool) -> Bool[ndarray, "s a"]:
    """Return which actions have the highest value: the first of them alone, or `several`, up to rounding."""
    best = q.max(1, keepdims=True)
    if several:
        return q >= best - 1e-6 * np.maximum(1.0, np.abs(best))
    return np.arange(q.shape[1]) == q.argmax(1)[:, None]


def compact(
    table: TransitionTable, start: Float[ndarray, " s"]
) -> tuple[TransitionTable, Float[ndarray, " s"], Int[ndarray, " s"]]:
    """Return the table of the states that can be reached from the start, their start, and their former numbers."""
    reached = start > 0
    while True:
        leads = (table.probability > 0) & ~table.terminated & reached[:, None, None]
        more = reached.copy()
        more[table.following[leads]] = True
        if (more == reached).all():
            break
        reached = more
    kept = np.flatnonzero(reached)
    number = np.zeros(len(reached), dtype=np.int64)  # what is never reached, as the end of an episode, becomes 0
    number[kept] = np.arange(len(kept))
    smaller = TransitionTable(
        number[table.following[kept]], table.probability[kept], table.reward[kept], table.terminated[kept]
    )
    return smaller, start[kept], kept


def expected_return(env: TabularEnvironment, policy: Int[ndarray, " s"]) -> float:
    """Return the expected sum of rewards of an episode under a deterministic policy, exactly, cut off at its limit.

    V_0 = 0, V_{n+1}(s) = Σ_k p_k (r_k + (1 − terminated_k) V_n(s'_k)) with the policy's action; the start's mean of
    V_limit.
    """
    rows = np.arange(len(policy)), policy
    probability, following = env.table.probability[rows], env.table.following[rows]
    earned = (probability * env.table.reward[rows]).sum(-1)
    weight = probability * ~env.table.terminated[rows]
    value = np.zeros(len(policy))
    for _ in range(env.config.limit):
        new = earned + (weight * value[following]).sum(-1)
        if np.array_equal(new, value):
            break
        value = new
    return float(env.start @ value)
