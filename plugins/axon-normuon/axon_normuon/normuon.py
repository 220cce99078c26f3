"""The optimiser `normuon`: Muon whose neurons all take steps of about the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from axon_core import UsageError
from axon_core.training import Coefficients, Muon, MuonOptimizer

__all__ = ["NorMuon", "NorMuonOptimizer", "row_factors"]


class NorMuon(Muon):
    """NorMuon on the hidden matrices of a model, AdamW without decay on the rest. Source: 2510.05491, Algorithm 1.

    All options of `muon` keep their meaning, `lr` too: a step is as large as Muon's.
    """

    type: Literal["normuon"] = "normuon"  # pyright: ignore[reportIncompatibleVariableOverride]
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay β₂ of the mean square of a neuron's steps."""
    row_eps: PositiveFloat = 1e-8
    """ε, added to the root of that mean square."""

    def matrix_optimizer(
        self, groups: list[dict[str, Any]], coefficients: Sequence[Coefficients], rows: Mapping[Tensor, list[int]]
    ) -> MuonOptimizer:
        """Return a NorMuon for the hidden matrices. Raises `UsageError` as `NorMuonOptimizer` does."""
        for group in groups:
            group |= {"beta2": self.beta2, "eps": self.row_eps}
        return NorMuonOptimizer(groups, coefficients, rows)


def row_factors(squares: Float[Tensor, " r"], mean_square: Float[Tensor, " r"], eps: float) -> Float[Tensor, " r"]:
    """Return what the rows of a step O are multiplied with: balanced, and of the norm that they had together before.

        Ô = O / (√v + ε);   the result makes Ô ‖O‖ / ‖Ô‖ of O

    The paper gives Ô the root mean square 0.2 instead, which suits the learning rates of AdamW. Source: 2510.05491,
    Algorithm 1.

    Args:
        squares: the squared norm of each row of O.
        mean_square: v.
        eps: ε.
    """
    factors = 1 / (mean_square.sqrt() + eps)
    balanced = (squares * factors.square()).sum().clamp_min(torch.finfo(squares.dtype).tiny)
    return factors * (squares.sum() / balanced).sqrt()


class NorMuonOptimizer(MuonOptimizer):
    """NorMuon (2510.05491, Algorithm 1): Muon, then every row of a step divided by its running root mean square.

        O = √max(1, r / c) U as in Muon;   v ← β₂ v + (1 - β₂) mean_c(O²);   W ← (1 - η λ) W - η f O

    with f of `row_factors`, one for each row, which is a neuron. v starts at 0 without correction: its scale is no
    matter, because the step has the norm of O. It is kept for each row: r numbers for a matrix, beside Muon's momentum.

    Args:
        groups: parameter groups with what Muon's have, `beta2` and `eps`.
        coefficients: the Newton–Schulz polynomials, one for each iteration.
        rows: for parameters that hold several matrices, one below the other, how many rows each has.

    Raises:
        UsageError: a parameter is divided among processes, so that no process has whole rows and norms.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        coefficients: Sequence[Coefficients],
        rows: Mapping[Tensor, list[int]] | None = None,
    ) -> None:
        if any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"]):
            raise UsageError("normuon needs whole parameters; use muon, or the strategy ddp of trainer.parallel")
        super().__init__(groups, coefficients, rows)

    def finished(
        self, parameters: Sequence[Tensor], updates: Sequence[Tensor], group: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        """Return the steps with balanced rows, each matrix by itself."""
        return [self._balanced(p, update, group) for p, update in zip(parameters, updates, strict=True)]

    def _balanced(self, p: Tensor, update: Tensor, group: Mapping[str, Any]) -> Tensor:
        state, rows = self.state[p], self.matrix_rows(p)
        squares = torch.linalg.vector_norm(update, dim=1).square()
        if "row_moment" not in state:
            state["row_moment"] = torch.zeros_like(squares)
        moment = cast(Tensor, state["row_moment"]).lerp_(squares / p.shape[1], 1 - group["beta2"])
        parts = zip(squares.split(rows), moment.split(rows), strict=True)
        return update * torch.cat([row_factors(part, v, group["eps"]) for part, v in parts])[:, None]

    def moment_bytes(self) -> int:
        """Return the bytes that the momenta and the mean squares take after the first update."""
        parameters = [cast(Tensor, p) for group in self.param_groups for p in group["params"]]
        return sum(p.nbytes + len(p) * p.element_size() for p in parameters)
