"""Model `advice`: the tables of many independent learners, their values and all answers about their actions.

They hold what a learner knows of actions and of trainers (arXiv 2111.08596, Abstract).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from axon_core.interfaces import Model

__all__ = ["AdviceTables"]


class AdviceTables(Model):
    """Tables of t learners with s states, a actions and m trainers (arXiv 2111.08596, Abstract); none has a gradient.

    Attributes:
        q: the value of each action, Q(s, a).
        good: h⁺, how often each trainer called an action good.
        bad: h⁻, how often it called it bad.
        answers: how many answers there are in a state, of all trainers.
        consistency: what is believed of each trainer, C.
        weight: what its answers count.
    """

    class Config(Model.Config):
        """Its sizes."""

        learners: PositiveInt
        """Independent learners t."""
        states: PositiveInt
        """States s."""
        actions: PositiveInt
        """Actions a."""
        trainers: NonNegativeInt = 0
        """Trainers m."""

    config: Config
    examples = ({"learners": 2, "states": 3, "actions": 2, "trainers": 1},)
    q: Float[Tensor, "t s a"]
    good: Int[Tensor, "t s m a"]
    bad: Int[Tensor, "t s m a"]
    answers: Int[Tensor, "t s"]
    consistency: Float[Tensor, "t m"]
    weight: Float[Tensor, "t m"]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        t, s, m, a = config.learners, config.states, config.trainers, config.actions
        self.register_buffer("q", torch.zeros(t, s, a, dtype=torch.float64))
        self.register_buffer("good", torch.zeros(t, s, m, a, dtype=torch.int32))
        self.register_buffer("bad", torch.zeros(t, s, m, a, dtype=torch.int32))
        self.register_buffer("answers", torch.zeros(t, s, dtype=torch.int32))
        self.register_buffer("consistency", torch.full((t, m), 0.5, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(t, m, dtype=torch.float64))

    def forward(self, states: Int[Tensor, "t b"]) -> Float[Tensor, "t b a"]:
        """Return Q + Σ_m w_m (h⁺ − h⁻) of states, the values with the trainers' scores."""
        rows = torch.arange(len(self.q))[:, None]
        delta = (self.good[rows, states] - self.bad[rows, states]).double()
        return self.q[rows, states] + torch.einsum("tbma,tm->tba", delta, self.weight)
