"""AdamW whose two moments have 8 bits (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from axon_core import UsageError
from axon_core.training import OptimizerConfig, matrices_and_vectors
from axon_qlora.dynamic import BLOCK, from_dynamic, to_dynamic

__all__ = ["AdamW8bit", "AdamW8bitOptimizer"]

_LEAST = 4096
"""Tensors of fewer numbers keep their moments in float32, as in bitsandbytes."""


class AdamW8bit(OptimizerConfig):
    """AdamW with moments in dynamic 8-bit numbers, in blocks of 256. Source: 2110.02861, Section 2.

    A parameter's state takes 2 bytes a number, and 8 for each 256, instead of 8 bytes a number. Vectors do not decay.
    """

    type: Literal["adamw8bit"] = "adamw8bit"
    weight_decay: NonNegativeFloat = 0.1
    """Decay of matrices a step, as a fraction of the learning rate."""

    def build(self, modules: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """Return one optimiser, with the matrices and the vectors in different groups."""
        groups = matrices_and_vectors(modules, self.lr, self.weight_decay)
        return [AdamW8bitOptimizer(groups, betas=self.betas, eps=self.eps)]


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², w ← (1 − λ lr) w − lr m̂ / (√v̂ + ε), m and v stored in 8 bits.

    A step widens the moments of one parameter at a time. The sign of m is kept; v has a map without signs. Source:
    2110.02861, Section 2.

    Raises:
        UsageError: a parameter is divided among processes, whose blocks would depend on how many there are.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        if any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"]):
            raise UsageError("adamw8bit needs whole parameters; use adamw, or the strategy ddp of trainer.parallel")
        super().__init__(groups, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in cast("list[Tensor]", group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        w, g = parameter, cast(Tensor, parameter.grad).float()
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        step = int(state.get("step", 0)) + 1
        m = _read(state, "exp_avg", w, signed=True).lerp_(g, 1 - beta1)
        v = _read(state, "exp_avg_sq", w, signed=False).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.mul_(1 - group["lr"] * group["weight_decay"])
        root = v.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        w.sub_((m / root).mul_(group["lr"] / (1 - beta1**step)).to(w.dtype))
        state["step"] = torch.tensor(float(step))
        _write(state, "exp_avg", m, signed=True)
        _write(state, "exp_avg_sq", v, signed=False)

    def moment_bytes(self) -> int:
        """Return the bytes that the moments and step counters take after the first update."""
        sizes = [cast(Tensor, p).numel() for group in self.param_groups for p in group["params"]]
        return sum(4 + (8 * n if n < _LEAST else 2 * n + 8 * -(-n // BLOCK)) for n in sizes)


def _read(state: dict[str, Any], name: str, w: Tensor, *, signed: bool) -> Tensor:
    """A moment in float32; zeros before the first step."""
    if name not in state:
        return torch.zeros_like(w, dtype=torch.float32)
    return from_dynamic(state[name], state[f"{name}_max"], signed) if f"{name}_max" in state else state[name]


def _write(state: dict[str, Any], name: str, moment: Tensor, *, signed: bool) -> None:
    if moment.numel() < _LEAST:
        state[name] = moment
    else:
        state[name], state[f"{name}_max"] = to_dynamic(moment, signed)
