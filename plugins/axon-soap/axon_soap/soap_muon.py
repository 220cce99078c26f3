"""The optimiser `soap_muon`: Muon, whose momentum is preconditioned as by SOAP before it is orthogonalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from axon_core import UsageError
from axon_core.training import Coefficients, Muon, MuonOptimizer
from axon_soap.eigenbasis import bases_of, follow, kept_bytes, rotate, rotate_back

__all__ = ["SOAPMuon", "SOAPMuonOptimizer"]


class SOAPMuon(Muon):
    """SOAP-Muon on the hidden matrices of a model, AdamW without decay on the rest.

    Its preconditioner is that of SOAP (2409.11321, Algorithm 3); what it is combined with is in no paper, but in the
    records of github KellerJordan/modded-nanogpt (track 3, pull request 278). All options of `muon` keep their meaning.
    """

    type: Literal["soap_muon"] = "soap_muon"  # pyright: ignore[reportIncompatibleVariableOverride]
    beta2: float = Field(default=0.9, ge=0, lt=1)
    """Decay β₂ of the second moment, L and R."""
    every: PositiveInt = 10
    """How many steps lie between two refreshments of the bases."""
    largest: PositiveInt = 2048
    """The most rows or columns of a matrix that are rotated; a longer side keeps its own basis."""

    def matrix_optimizer(
        self, groups: list[dict[str, Any]], coefficients: Sequence[Coefficients], rows: Mapping[Tensor, list[int]]
    ) -> MuonOptimizer:
        """Return a SOAP-Muon for the hidden matrices. Raises `UsageError` as `SOAPMuonOptimizer` does."""
        for group in groups:
            group |= {"beta2": self.beta2, "eps": self.eps, "every": self.every, "largest": self.largest}
        return SOAPMuonOptimizer(groups, coefficients, rows)


class SOAPMuonOptimizer(MuonOptimizer):
    """SOAP-Muon: Muon of a momentum that is divided, in SOAP's eigenbasis, by its root mean square.

        U = (1 - μ) G + μ M as in Muon;   Û = Q_Lᵀ U Q_R;   V ← β₂ V + (1 - β₂) Û²;   U ← Q_L (Û / (√V + ε)) Q_Rᵀ

    Then Muon orthogonalises U. L, R and the bases are SOAP's (2409.11321, Algorithm 3), with this gradient already.
    Source of the combination: github KellerJordan/modded-nanogpt, track 3, pull request 278.

    It gives directions that gradients hardly have the size of all others, and so amplifies their rounding: runs that
    sum gradients in another order (micro-batches, processes) part after a few steps of small batches.

    Args:
        groups: parameter groups with what Muon's have, `beta2`, `eps`, `every` and `largest`.
        coefficients: the Newton–Schulz polynomials, one for each iteration.
        rows: for parameters that hold several matrices, one below the other, how many rows each has.

    Raises:
        UsageError: a parameter is divided among processes, so that no process has whole rows and columns.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        coefficients: Sequence[Coefficients],
        rows: Mapping[Tensor, list[int]] | None = None,
    ) -> None:
        if any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"]):
            raise UsageError("soap_muon needs whole parameters; use muon, or the strategy ddp of trainer.parallel")
        super().__init__(groups, coefficients, rows)

    def directions(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """Return the preconditioned momenta."""
        momenta = super().directions(parameters, group)
        return [self._preconditioned(p, u, group) for p, u in zip(parameters, momenta, strict=True)]

    def _preconditioned(self, p: Tensor, momentum: Tensor, group: Mapping[str, Any]) -> Tensor:
        state, rows, largest = self.state[p], self.matrix_rows(p), group["largest"]
        if "moment" not in state:
            state |= {"step": torch.zeros(()), "moment": torch.zeros_like(p)}
        state["step"] += 1
        refresh = int(state["step"]) % group["every"] == 0
        made: list[Tensor] = []
        tensors = (cast(Tensor, p.grad), momentum, state["moment"])
        for number, (g, u, v) in enumerate(zip(*(tensor.split(rows) for tensor in tensors), strict=True)):
            bases_of(state, g, largest, number)
            follow(state, g, group["beta2"], refresh=refresh, largest=largest, number=number)
            bases = bases_of(state, g, largest, number)
            rotated = rotate(u, *bases)
            v.lerp_(rotated.square(), 1 - group["beta2"])
            made.append(rotate_back(rotated / (v.sqrt() + group["eps"]), *bases))
        return torch.cat(made)

    def moment_bytes(self) -> int:
        """Return the bytes of both moments, a counter, and L, R and their bases after the first update."""
        total = 0
        for group in self.param_groups:
            for p in cast("list[Tensor]", group["params"]):
                matrices = [(rows, p.shape[1]) for rows in self.matrix_rows(p)]
                total += 2 * p.nbytes + 4 + kept_bytes(matrices, group["largest"], p.element_size())
        return total
