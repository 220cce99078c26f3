"""Gymnasium's environments; needs `pip install 'axon-ppo[control]'`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.errors import ConfigError, UsageError
from axon_ppo.environment import Environment, Transition

__all__ = ["Gymnasium"]


class Gymnasium(Environment):
    """Any environment of Gymnasium with a vector to observe and discrete actions.

    Raises:
        UsageError: Gymnasium is not installed.
        ConfigError: there is no such environment, or it has other observations or actions.
    """

    class Config(Environment.Config):
        """Which one."""

        id: str = "CartPole-v1"
        """Its name in Gymnasium's registry."""

    def __init__(self, config: Config) -> None:
        self.config = config
        first = self._make()
        observed, actions = first.observation_space, first.action_space
        if len(observed.shape or ()) != 1 or not hasattr(actions, "n"):
            raise ConfigError(
                [(("id",), f"must have a vector to observe and discrete actions, got {observed} and {actions}")]
            )
        self.n_observed, self.n_actions = int(observed.shape[0]), int(actions.n)
        self._rows = [first]
        self._ended = [True]

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "b o"]:
        """Begin anew, with one episode for each seed.

        Raises:
            UsageError: Gymnasium is not installed.
            ConfigError: it can make no further environment of this name.
        """
        self._rows += [self._make() for _ in range(len(seeds) - len(self._rows))]
        self._ended = [False] * len(seeds)
        return torch.stack([self.restart(row, seed) for row, seed in enumerate(seeds)])

    def restart(self, row: int, seed: int) -> Float[Tensor, " o"]:
        """Begin another episode in one row."""
        self._ended[row] = False
        return _tensor(self._rows[row].reset(seed=seed)[0])

    def step(self, actions: Int[Tensor, " b"]) -> Transition:
        """Act in all environments whose episode goes on; the others stay as they are."""
        found: list[tuple[Tensor, float, bool, bool]] = []
        for row, action in enumerate(actions.tolist()):
            if self._ended[row]:
                found.append((torch.zeros(self.n_observed, dtype=torch.float32), 0.0, True, False))
                continue
            observation, reward, terminated, truncated, _ = self._rows[row].step(action)
            self._ended[row] = terminated or truncated
            found.append((_tensor(observation), float(reward), terminated, truncated))
        observations, rewards, terminated, truncated = zip(*found, strict=True)
        return Transition(
            torch.stack(observations),
            torch.tensor(rewards, dtype=torch.float32),
            torch.tensor(terminated),
            torch.tensor(truncated),
        )

    def _make(self) -> Any:
        try:
            import gymnasium  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise UsageError(
                "the environment is Gymnasium's, which is not installed: pip install 'axon-ppo[control]'"
            ) from None
        try:
            return gymnasium.make(self.config.id)
        except gymnasium.error.Error as error:
            raise ConfigError(
                [(("id",), f"must be an environment of Gymnasium, got {self.config.id!r} ({error})")]
            ) from None


def _tensor(observation: Any) -> Tensor:
    return torch.as_tensor(observation, dtype=torch.float32)
