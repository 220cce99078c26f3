"""Environments with discrete actions, in a registry of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core import config
from axon_core.registry import Registry

__all__ = ["ENVIRONMENTS", "Environment", "Transition"]


class Transition(NamedTuple):
    """The result of one action in each of the environments that run side by side."""

    observation: Float[Tensor, "b o"]
    """What is seen after it; if the episode ended, what was seen last."""
    reward: Float[Tensor, " b"]
    """What it earned."""
    terminated: Bool[Tensor, " b"]
    """Whether the episode is over: nothing more can be earned."""
    truncated: Bool[Tensor, " b"]
    """Whether the episode was cut off where it could have continued."""


class Environment(ABC):
    """A batch of environments, each with an episode of its own, on the CPU.

    What happens in an episode depends on its seed and its actions alone; and every episode ends, or is cut off.

    Attributes:
        n_observed: numbers o in an observation.
        n_actions: number of actions, which are numbered from 0.
    """

    class Config(config.Config):
        """Options of an environment."""

    n_observed: int
    n_actions: int

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "b o"]:
        """Start again with one episode for each seed (63 bits), and return the first observations."""

    @abstractmethod
    def restart(self, row: int, seed: int) -> Float[Tensor, " o"]:
        """Start another episode in one row, and return its first observation."""

    @abstractmethod
    def step(self, actions: Int[Tensor, " b"]) -> Transition:
        """Act in all environments. A row whose episode has ended may return anything until it is restarted."""


ENVIRONMENTS: Registry[Environment] = Registry("environment", Environment)
"""Environments by key; a plugin adds one in the entry-point group `axon.v1.environment`."""
