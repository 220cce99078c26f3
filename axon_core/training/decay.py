"""Weight decay: by which rule the weights of an optimiser shrink, and the registry of the rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from axon_core import config
from axon_core.registry.registry import Registry

__all__ = ["WEIGHT_DECAYS", "Decoupled", "WeightDecay"]


class WeightDecay(ABC):
    """How weights decay: a rule that is attached to any optimisers before their first step."""

    class Config(config.Config):
        """The options of the rule; the rate λ is the optimiser's own, `weight_decay`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Let the optimisers decay their weights by this rule, at the rate `weight_decay` λ of each parameter group.

        An optimiser by itself decays all of them, w ← (1 - η λ) w. A rule that is different sets `weight_decay` of the
        group to 0, and registers a hook before or after the step.
        """


class Decoupled(WeightDecay):
    """Decoupled weight decay (1711.05101): w ← (1 - η λ) w before the step, what optimisers do by themselves."""

    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Leave the optimisers as they are."""


WEIGHT_DECAYS: Registry[WeightDecay] = Registry("weight_decay", WeightDecay)
"""Rules of weight decay by key."""
