"""Environment `gymnasium_table`: Gymnasium's environments of discrete states; needs `axon-advise[control]`.

They are not from the paper (arXiv 2111.08596, Abstract), whose learner they serve.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from axon_advise.tabular import TabularEnvironment, TransitionTable
from axon_core import ConfigError, UsageError, printable
from axon_core.registry import install_line

__all__ = ["GymnasiumTable"]


class GymnasiumTable(TabularEnvironment):
    """An environment of Gymnasium with discrete states and actions, which gives its dynamics as the table `P`.

    It is another test of the learner (arXiv 2111.08596, Abstract).

    FrozenLake, Taxi and CliffWalking do, and so do many others: `P[state][action]` lists outcomes as
    `(probability, next state, reward, terminated)`, and `initial_state_distrib` says where an episode starts; without
    it, the states that 32 resets give are equally probable.

    Raises:
        UsageError: Gymnasium is not installed.
        ConfigError: there is no such environment, its states or actions are not discrete, or it has no table.
    """

    class Config(TabularEnvironment.Config):
        """Which environment."""

        id: str = "FrozenLake-v1"
        """Its name in Gymnasium's registry."""
        options: dict[str, bool | int | float | str] = Field(default_factory=dict)
        """Arguments of `gymnasium.make`, such as `{is_slippery = false}`."""

    config: Config

    def build(self) -> tuple[TransitionTable, Float[ndarray, " s"]]:
        """Return the table and the start. Raises `ConfigError` or `UsageError` as the class says."""
        env = self._make()
        states, actions = (getattr(space, "n", None) for space in (env.observation_space, env.action_space))
        table = getattr(env.unwrapped, "P", None)
        if states is None or actions is None or table is None:
            raise ConfigError(
                [(("id",), f"must have discrete states and actions and a transition table `P`, got {self.config.id}")]
            )
        most = max(len(table[s][a]) for s in range(states) for a in range(actions))
        shape = (int(states), int(actions), most)
        following, probability, reward = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
        terminated = np.zeros(shape, dtype=bool)
        for s in range(states):
            for a in range(actions):
                for k, outcome in enumerate(table[s][a]):
                    probability[s, a, k], following[s, a, k], reward[s, a, k], terminated[s, a, k] = outcome
        return TransitionTable(following, probability, reward, terminated), self._start(env, int(states))

    def _start(self, env: Any, states: int) -> Float[ndarray, " s"]:
        given = getattr(env.unwrapped, "initial_state_distrib", None)
        if given is not None:
            return np.asarray(given, dtype=np.float64)
        start = np.zeros(states)
        np.add.at(start, [int(env.reset(seed=seed)[0]) for seed in range(32)], 1 / 32)
        return (start > 0) / (start > 0).sum()

    def _make(self) -> Any:
        try:
            import gymnasium  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise UsageError(
                f"the environment is Gymnasium's, which is not installed: {install_line('axon-advise', 'control')}"
            ) from None
        try:
            options: dict[str, Any] = dict(self.config.options)
            return gymnasium.make(self.config.id, **options)
        except (gymnasium.error.Error, TypeError) as error:
            message = f"must be an environment of Gymnasium, got {self.config.id!r} ({printable(str(error))})"
            raise ConfigError([(("id",), message)]) from None
