"""What the two trainers of proximal policy optimisation share: settings, mini-batches, and the terms of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from axon_core import Count, Key
from axon_core.alignment import token_entropies
from axon_core.training import AdamW, Optimizer, Trainer
from axon_ppo.maths import clipped_surrogate, clipped_value_loss, k2

__all__ = ["PPOBase"]


class PPOBase(Trainer):
    """Several epochs of updates on what the policy just did, none of which moves it far (1707.06347, Algorithm 1).

    A step of the loop is one iteration: `collect` acts, `minibatches` cuts what was collected, and `terms` is
    the loss of actions, −L^CLIP + c₁ L^VF − c₂ S (Section 5, Eq. 9). Collected rows have a `number`, their place in the
    step over all processes.
    """

    class Config(Trainer.Config):
        """Settings of all proximal policy optimisation, in addition to those of every trainer."""

        renamed: ClassVar[Mapping[str, str]] = {"lam": "gae_lambda"}

        optimizer: Optimizer = Field(
            default_factory=lambda: AdamW(lr=3e-4, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5)
        )
        """The optimiser by `type`; by default Adam with ε 1e-5 and no decay."""
        epochs: Count = 4
        """How often each step's data are used."""
        minibatches: Count = 1
        """Updates in an epoch, each on a different part of the step's data."""
        clip_range: PositiveFloat = 0.2
        """ε: how far the ratio of probabilities may move from 1 (Section 3, Eq. 7)."""
        value_clip_range: PositiveFloat | None = 0.2
        """How far a value may move in a step before its loss is clipped; None for any distance."""
        value_weight: NonNegativeFloat = 0.5
        """Weight c₁ of the value function's loss (Section 5, Eq. 9)."""
        entropy_weight: NonNegativeFloat = 0.0
        """Weight c₂ of the entropy bonus (Section 5, Eq. 9)."""
        gamma: float = Field(default=0.99, ge=0, le=1)
        """Discount γ of a reward one action later."""
        gae_lambda: float = Field(default=0.95, ge=0, le=1)
        """λ of the generalised advantages (Section 5, Eq. 11)."""

        @model_validator(mode="after")
        def _divides(self) -> Self:
            if self.batch_size % self.minibatches:
                raise ValueError(
                    f"minibatches must divide batch_size, got {self.minibatches} for {self.batch_size}, so that all "
                    "updates have the same weight"
                )
            return self

    config: Config
    trainable = ("policy", "value")
    training_mode = False  # a dropped feature would change the probabilities that the ratio compares

    PER_ACTION = (
        "loss/total_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "val/clipfrac_avg",
    )
    """The names of `terms`."""

    @property
    def rows(self) -> int:
        """How many rows a step collects over all processes, a multiple of `minibatches`."""
        return self.config.batch_size

    def minibatches(self, data: dict[str, Tensor], key: Key) -> Iterator[dict[str, Tensor]]:
        """Yield `epochs` times `minibatches` parts; which rows go together depends on their numbers and the key."""
        parts = self.config.minibatches
        if parts == 1:
            yield from [data] * self.config.epochs
            return
        numbers = data["number"]
        groups = self.rows // parts
        for epoch in range(self.config.epochs):
            # Of every `parts` consecutive rows, one goes into each mini-batch, so that none is ever empty,
            # whatever share of the rows a process has.
            order = key(epoch).uniform((groups, parts)).argsort(-1).flatten()
            part_of = order.to(numbers.device)[numbers]
            for part in range(parts):
                chosen = part_of == part
                yield {name: rows[chosen] for name, rows in data.items()}

    def entropies(self, logits: Float[Tensor, "k v"]) -> Float[Tensor, " k"]:
        """Return the entropy of each action's distribution; with a gradient only if it is part of the loss."""
        with nullcontext() if self.config.entropy_weight else torch.no_grad():
            return token_entropies(logits)

    def terms(
        self,
        *,
        logprobs: Float[Tensor, " k"],
        old_logprobs: Float[Tensor, " k"],
        advantages: Float[Tensor, " k"],
        values: Float[Tensor, " k"],
        old_values: Float[Tensor, " k"],
        returns: Float[Tensor, " k"],
        entropies: Float[Tensor, " k"],
    ) -> dict[str, Tensor]:
        """Return the loss of k actions and what is reported of them, as sums under the names `PER_ACTION`."""
        c = self.config
        policy, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, c.clip_range)
        value, value_clipped = clipped_value_loss(
            values, old_values, returns, math.inf if c.value_clip_range is None else c.value_clip_range
        )
        total = policy.sum() + c.value_weight * value.sum()
        if c.entropy_weight:
            total = total - c.entropy_weight * entropies.sum()
        with torch.no_grad():
            reported = (
                policy.sum(),
                value.sum(),
                k2(logprobs, old_logprobs).sum(),
                clipped.to(policy.dtype).sum(),
                entropies.sum(),
                value_clipped.to(value.dtype).sum(),
            )
        return dict(zip(self.PER_ACTION, (total, *(term.detach() for term in reported)), strict=True))
