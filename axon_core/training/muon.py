"""Muon: momentum with every matrix orthogonalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.processes import local
from axon_core.training.devices import multiplies_bf16
from axon_core.training.owners import on_owners

__all__ = ["COEFFICIENTS", "Coefficients", "MuonOptimizer", "orthogonalise"]

Coefficients = tuple[float, float, float]
"""a, b and c of one Newton–Schulz iteration, X ← a X + (b A + c A²) X with A = X Xᵀ."""

# Polar Express (2505.16932), Algorithm 1: the best polynomials for singular values in [0.001, 1], without the paper's
# safety factor; the last one serves all further iterations.
_POLAR: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
COEFFICIENTS: Mapping[str, Callable[[int], Coefficients]] = {
    "quintic": lambda i: (3.4445, -4.7750, 2.0315),  # Keller Jordan, "Muon", 2024: the steepest at 0
    "polar": lambda i: _POLAR[min(i, len(_POLAR) - 1)],
}


def _dtype(matrices: Tensor) -> torch.dtype:
    """Return bfloat16, precise enough for a direction, on devices where it is several times as fast as float32."""
    if matrices.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if multiplies_bf16(str(matrices.device)) else torch.float32


def orthogonalise(
    matrices: Float[Tensor, "b r c"], coefficients: Sequence[Coefficients], dtype: torch.dtype | None = None
) -> Float[Tensor, "b r c"]:
    """Return U Vᵀ, nearly, of each matrix U S Vᵀ: the singular values become about 1.

    Newton–Schulz: X ← X / ‖X‖, then for each (a, b, c): X ← a X + (b A + c A²) X with A = X Xᵀ. The coefficients are
    Keller Jordan's ("Muon", 2024) or those of Polar Express (arXiv 2505.16932, Algorithm 1). It is fast for r ≤ c.
    Computed in `dtype`, by default bfloat16 if the device has instructions for it, else float32, or float64 for
    matrices in float64; and returned in that of `matrices`.
    """
    x = matrices.to(dtype or _dtype(matrices))
    x = x * (1 / (matrices.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)).to(x.dtype)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class MuonOptimizer(torch.optim.Optimizer):
    """Muon (Keller Jordan, 2024): momentum with every matrix orthogonalised, all matrices of one shape at once.

        M ← μ M + (1 - μ) G;   U = orthogonalise((1 - μ) G + μ M);   W ← (1 - η λ) W - η √max(1, r / c) U

    It is `torch.optim.Muon`, batched; wide and tall matrices of one shape go together, the tall ones transposed. Of
    several processes each orthogonalises whole matrices, those of its share of the parameters (`training.owners`).

    A plugin derives from it to change the step before the orthogonalisation (`directions`) or after it (`finished`).

    Args:
        groups: parameter groups with `lr` η, `momentum` μ and `weight_decay` λ; all parameters are matrices.
        coefficients: the Newton–Schulz polynomials, one for each iteration.
        rows: for parameters that hold several matrices, one below the other, how many rows each has.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        coefficients: Sequence[Coefficients],
        rows: Mapping[Tensor, list[int]] | None = None,
    ) -> None:
        super().__init__(groups, {})
        self._coefficients = coefficients
        self._rows = rows or {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in cast(list[Tensor], group["params"]) if p.grad is not None]
            directions = self.directions(parameters, group)
            updates = self.finished(parameters, on_owners(parameters, directions, self._orthogonalised), group)
            for p, update in zip(parameters, updates, strict=True):
                weight = local(p)
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"])

    def directions(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """Take the gradients into the momenta; return this process's part of what is orthogonalised of each parameter.

        It is (1 - μ) G + μ M.
        """
        return [self._advanced(p, group["momentum"]) for p in parameters]

    def finished(
        self, parameters: Sequence[Tensor], updates: Sequence[Tensor], group: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        """Return this process's part of the step of each parameter, given that of √max(1, r / c) U: the same."""
        return updates

    def matrix_rows(self, parameter: Float[Tensor, "r c"]) -> list[int]:
        """Return how many rows of a parameter each matrix in it has."""
        return self._rows.get(parameter, [len(parameter)])

    def _advanced(self, p: Tensor, decay: float) -> Tensor:
        """Take the gradient of a parameter into its momentum, and return this process's part of (1 - μ) G + μ M."""
        gradient, state = local(cast(Tensor, p.grad)), self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = local(state["momentum"]).lerp_(gradient, 1 - decay)
        return gradient.lerp(momentum, decay)

    def _orthogonalised(self, parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """Return √max(1, r / c) U of each matrix in the whole steps of parameters."""
        rows = [self.matrix_rows(p) for p in parameters]
        parts = [part for step, each in zip(steps, rows, strict=True) for part in torch.split(step, each)]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, part in enumerate(parts):
            by_shape.setdefault(tuple(sorted(part.shape)), []).append(i)
        for members in by_shape.values():
            wide = [parts[i] if _is_wide(parts[i]) else parts[i].mT for i in members]
            for i, update in zip(members, orthogonalise(torch.stack(wide), self._coefficients), strict=True):
                scale = math.sqrt(max(1.0, parts[i].shape[0] / parts[i].shape[1]))
                parts[i] = (update if _is_wide(parts[i]) else update.mT) * scale
        found = iter(parts)
        return [torch.cat([next(found) for _ in each]) if len(each) > 1 else next(found) for each in rows]


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]
