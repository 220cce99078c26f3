"""Environment `steering`: the smallest task in which an action now matters later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import Count
from axon_ppo.environment import Environment, Transition

__all__ = ["Steering"]


class Steering(Environment):
    """A body on a line, pushed left, not at all, or right: v ← v + 0.2 (a − 1), x ← x + 0.2 v; it earns 1 − x².

    It starts at rest, within 1 of the middle. An episode is over once |x| > 2, and cut off after `limit` actions. The
    observation is x and v. Left alone, the body earns about ⅔ per action; well steered, more than 0.9.
    """

    class Config(Environment.Config):
        """Its only setting."""

        limit: Count = 50
        """Actions after which an episode is cut off."""

    n_observed = 2
    n_actions = 3

    def __init__(self, config: Config) -> None:
        self.config = config
        self._state = torch.zeros(0, 2, dtype=torch.float32)
        self._age = torch.zeros(0, dtype=torch.long)

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "b 2"]:
        """Start again with one episode for each seed."""
        self._state, self._age = (
            torch.zeros(len(seeds), 2, dtype=torch.float32),
            torch.zeros(len(seeds), dtype=torch.long),
        )
        return torch.stack([self.restart(row, seed) for row, seed in enumerate(seeds)])

    def restart(self, row: int, seed: int) -> Float[Tensor, " 2"]:
        """Start another episode in one row."""
        self._age[row] = 0
        start = 2 * torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float32) - 1
        self._state[row] = torch.stack((start, torch.zeros_like(start)))
        return self._state[row].clone()

    def step(self, actions: Int[Tensor, " b"]) -> Transition:
        """Act in all rows."""
        x, v = self._state.unbind(1)
        v = v + 0.2 * (actions - 1).float()
        x = x + 0.2 * v
        self._state = torch.stack((x, v), 1)
        self._age = self._age + 1
        over = x.abs() > 2
        return Transition(self._state.clone(), 1 - x.square(), over, ~over & (self._age >= self.config.limit))
