"""The rule `cautious`: weights decay where the step makes them smaller, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.training import WeightDecay

__all__ = ["CautiousDecay", "cautious_decay"]


def cautious_decay(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], rate: float
) -> Float[Tensor, "*shape"]:
    """Return weights after a step, decayed where the step did not make them larger.

        x' = x - η (u + λ 𝕀(u x ≥ 0) x),   entry by entry

    Source: 2510.12402, Algorithm 1.

    Args:
        before: the weights x before the step.
        after: the weights x - η u that the step alone leads to.
        rate: η λ.
    """
    aligned = (before - after) * before >= 0  # 𝕀(u x ≥ 0), because η > 0
    return torch.where(aligned, after - rate * before, after)


class CautiousDecay(WeightDecay):
    """Cautious weight decay of any optimiser, with the rate `weight_decay` that it has already.

    Source: 2510.12402, Algorithm 1.

    It sees the step as the difference of the weights after and before it, so it needs a copy of the weights that decay
    while a step is made, and keeps nothing between steps.
    """

    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Let each parameter group decay by this rule instead of its own."""
        for optimizer in optimizers:
            rates = [cast(float, group["weight_decay"]) for group in optimizer.param_groups]
            if not any(rates):
                continue
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
            steps = _Steps(rates)
            optimizer.register_step_pre_hook(steps.begin)
            optimizer.register_step_post_hook(steps.end)


class _Steps:
    """What the hooks before and after a step share: the decay of each group, and the weights before the step."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates, self._before = rates, list[tuple[Tensor, Tensor, float]]()

    def begin(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Copy the weights that are going to change."""
        for group, decay in zip(optimizer.param_groups, self._rates, strict=True):
            for parameter in cast("list[Tensor]", group["params"]):
                if decay and parameter.grad is not None:
                    weight = parameter.detach()
                    self._before.append((weight, weight.clone(), group["lr"] * decay))

    def end(self, *_: Any) -> None:
        """Decay what the step has changed."""
        for weight, before, rate in self._before:
            weight.copy_(cautious_decay(before, weight, rate))
        self._before.clear()
