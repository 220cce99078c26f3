"""Gymnasium's environments; needs `pip install 'axon-ppo[control]'`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import ConfigError, ContractError, UsageError
from axon_core.registry import install_line
from axon_ppo.environment import Environment, Transition
from axon_ppo.spaces import action_range, encoder

__all__ = ["Gymnasium"]


class Gymnasium(Environment):
    """Any environment of Gymnasium with discrete actions whose observations are vectors or can be encoded as such.

    See `axon_ppo.spaces.encoder` for observations. Action 0 is the environment's own first action, its `start`.

    Raises:
        UsageError: Gymnasium is not installed.
        ConfigError: there is no such environment, or its observations or actions are of another kind.
    """

    class Config(Environment.Config):
        """Which environment."""

        id: str = "CartPole-v1"
        """Its name in Gymnasium's registry."""

    def __init__(self, config: Config) -> None:
        self.config = config
        first = self._make()
        try:
            self.n_observed, self._encode = encoder(first.observation_space)
            self._actions = action_range(first.action_space)
        except ValueError as error:
            raise ConfigError([(("id",), f"{config.id} cannot be played: {error}")]) from None
        self.n_actions = len(self._actions)
        self._rows = [first]
        self._ended = [True]

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "b o"]:
        """Start again with one episode for each seed.

        Raises:
            UsageError: Gymnasium is not installed.
            ConfigError: it cannot make another environment of this name.
            ContractError: an observation is not in the environment's space.
        """
        self._rows += [self._make() for _ in range(len(seeds) - len(self._rows))]
        self._ended = [False] * len(seeds)
        return torch.stack([self.restart(row, seed) for row, seed in enumerate(seeds)])

    def restart(self, row: int, seed: int) -> Float[Tensor, " o"]:
        """Start another episode in one row. Raises `ContractError` if its observation is not in its space."""
        self._ended[row] = False
        return self._vector(self._rows[row].reset(seed=seed)[0])

    def step(self, actions: Int[Tensor, " b"]) -> Transition:
        """Act in all environments whose episode continues; the others stay as they are.

        Raises:
            ContractError: an observation is not in the environment's space.
        """
        found: list[tuple[Tensor, float, bool, bool]] = []
        for row, action in enumerate(actions.tolist()):
            if self._ended[row]:
                found.append((torch.zeros(self.n_observed, dtype=torch.float32), 0.0, True, False))
                continue
            observation, reward, terminated, truncated, _ = self._rows[row].step(self._actions[action])
            self._ended[row] = terminated or truncated
            found.append((self._vector(observation), float(reward), terminated, truncated))
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
                f"the environment is Gymnasium's, which is not installed: {install_line('axon-ppo', 'control')}"
            ) from None
        try:
            return gymnasium.make(self.config.id)
        except gymnasium.error.Error as error:
            raise ConfigError(
                [(("id",), f"must be an environment of Gymnasium, got {self.config.id!r} ({error})")]
            ) from None

    def _vector(self, observation: Any) -> Float[Tensor, " o"]:
        try:
            return torch.tensor(self._encode(observation))  # a copy, whatever the environment does with its own
        except (TypeError, ValueError, LookupError) as error:
            space = self._rows[0].observation_space
            raise ContractError(
                f"the environment {self.config.id} must return observations of its space, {space}, got "
                f"{observation!r:.200} ({error})"
            ) from None
