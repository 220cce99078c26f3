"""The optimiser `soap`: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from axon_core import UsageError
from axon_core.training import OptimizerConfig, matrices_and_vectors, stacked_rows
from axon_soap.eigenbasis import bases_of, follow, kept_bytes, rotate, rotate_back

__all__ = ["SOAP", "SOAPOptimizer"]


class SOAP(OptimizerConfig):
    """SOAP on all matrices of a model, Adam on its vectors, which do not decay. Source: 2409.11321, Algorithm 3.

    Matrices in a `StackedLinear` are taken one by one.
    """

    type: Literal["soap"] = "soap"
    lr: PositiveFloat = 3e-3
    """Learning rate at its peak."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the first moment, and of the second moment, L and R."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of matrices a step, as a fraction of the learning rate."""
    every: PositiveInt = 10
    """The preconditioning frequency f: how many steps lie between two refreshments of the bases (Section 6.2)."""
    largest: PositiveInt = 2048
    """The most rows or columns of a matrix that are rotated; a longer side keeps its own basis (Section 4.1)."""

    def build(self, modules: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """Return one optimiser for all parameters. Raises `UsageError` as `SOAPOptimizer` does."""
        groups = matrices_and_vectors(modules, self.lr, self.weight_decay)
        options = {"betas": self.betas, "eps": self.eps, "every": self.every, "largest": self.largest}
        return [SOAPOptimizer([group | options for group in groups], stacked_rows(modules))]


class SOAPOptimizer(torch.optim.Optimizer):
    """SOAP (2409.11321, Algorithm 3), with Adam's bias correction and decoupled weight decay.

        G' = Q_Lᵀ G Q_R;   M ← β₁ M + (1 - β₁) G;   M' = Q_Lᵀ M Q_R;   V ← β₂ V + (1 - β₂) G'²
        W ← (1 - η λ) W - η Q_L (M̂' / (√V̂ + ε)) Q_Rᵀ

    The bases are those of the gradients before this one, and follow them every f steps; at the first step they are
    this one's. With both sides longer than `largest` it is AdamW, as for vectors.

    Args:
        groups: parameter groups with `lr` η, `betas`, `eps` ε, `weight_decay` λ, `every` f and `largest`.
        rows: for parameters that hold several matrices, one below the other, how many rows each has.

    Raises:
        UsageError: a parameter is divided among processes, so that no process has whole rows and columns.
    """

    def __init__(self, groups: list[dict[str, Any]], rows: Mapping[Tensor, list[int]] | None = None) -> None:
        if any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"]):
            raise UsageError("soap needs whole parameters; use muon, or the strategy ddp of trainer.parallel")
        super().__init__(groups, {})
        self._rows = rows or {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for p in cast("list[Tensor]", group["params"]):
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p), "moment": torch.zeros_like(p)}
        state["step"] += 1
        step = int(state["step"])
        momentum = state["momentum"].lerp_(gradient, 1 - beta1)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        eps = group["eps"] * (1 - beta2**step) ** 0.5
        if p.ndim != 2:
            moment = state["moment"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            p.addcdiv_(momentum, moment.sqrt().add_(eps), value=-size)
            return
        largest, rows = group["largest"], self._rows.get(p, [len(p)])
        parts = zip(*(tensor.split(rows) for tensor in (p, gradient, momentum, state["moment"])), strict=True)
        for number, (w, g, m, v) in enumerate(parts):
            bases = bases_of(state, g, largest, number)
            rotated = rotate(g, *bases)
            v.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
            w.sub_(rotate_back(rotate(m, *bases) / (v.sqrt() + eps), *bases), alpha=size)
            follow(state, g, beta2, refresh=step % group["every"] == 0, largest=largest, number=number)

    def moment_bytes(self) -> int:
        """Return the bytes of both moments, a counter, and L, R and their bases after the first update."""
        total = 0
        for group in self.param_groups:
            for p in cast("list[Tensor]", group["params"]):
                matrices = [(rows, p.shape[1]) for rows in self._rows.get(p, [len(p)])] if p.ndim == 2 else []
                total += 2 * p.nbytes + 4 + kept_bytes(matrices, group["largest"], p.element_size())
        return total
