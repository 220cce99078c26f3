"""The eigenbasis of Shampoo's preconditioner: how a matrix is rotated into it, and how it follows the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bases_of", "follow", "kept_bytes", "refresh_basis", "rotate", "rotate_back"]


def rotate(
    x: Float[Tensor, "r c"], left: Float[Tensor, "r r"] | None, right: Float[Tensor, "c c"] | None
) -> Float[Tensor, "r c"]:
    """Return Q_Lᵀ X Q_R: a matrix in the eigenbasis; None stands for the identity. Source: 2409.11321, Algorithm 3."""
    x = x if left is None else left.mT @ x
    return x if right is None else x @ right


def rotate_back(
    x: Float[Tensor, "r c"], left: Float[Tensor, "r r"] | None, right: Float[Tensor, "c c"] | None
) -> Float[Tensor, "r c"]:
    """Return Q_L X Q_Rᵀ: a matrix of the eigenbasis as it was before `rotate`. Source: 2409.11321, Algorithm 3."""
    x = x if left is None else left @ x
    return x if right is None else x @ right.mT


def refresh_basis(covariance: Float[Tensor, "n n"], basis: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return an estimate of the eigenvectors of P that is better than Q: Q of the QR decomposition of P Q.

    It is one step of the power iteration. Source: 2409.11321, Algorithm 4.
    """
    return torch.linalg.qr(covariance @ basis).Q


def bases_of(
    state: dict[str, Any], gradient: Float[Tensor, "r c"], largest: int, number: int = 0
) -> tuple[Float[Tensor, "r r"] | None, Float[Tensor, "c c"] | None]:
    """Return Q_L and Q_R; a side of more than `largest` has None, the identity (2409.11321, Section 4.1).

    At the first step L and R are those of its gradient, and Q_L and Q_R their exact eigenvectors.

    Args:
        state: what the optimiser keeps for the parameter.
        gradient: G, or the part of it that belongs to one of several matrices.
        largest: the most rows or columns that are rotated.
        number: which of the parameter's matrices it is.
    """
    for side, g in _sides(gradient, largest):
        if (covariance := f"{side}.{number}") not in state:
            state[covariance] = g @ g.mT
            state[f"{side}_basis.{number}"] = torch.linalg.eigh(state[covariance]).eigenvectors
    return state.get(f"left_basis.{number}"), state.get(f"right_basis.{number}")


def follow(
    state: dict[str, Any], gradient: Float[Tensor, "r c"], beta: float, *, refresh: bool, largest: int, number: int = 0
) -> None:
    """Take a gradient into L and R, whose bases `bases_of` has begun, and let these follow.

        L ← β L + (1 - β) G Gᵀ;   R ← β R + (1 - β) Gᵀ G

    Source: 2409.11321, Algorithm 3.

    Args:
        state: what the optimiser keeps for the parameter; changed.
        gradient: G.
        beta: β.
        refresh: whether Q_L and Q_R follow L and R at this step.
        largest: as for `bases_of`.
        number: as for `bases_of`.
    """
    for side, g in _sides(gradient, largest):
        covariance, basis = state[f"{side}.{number}"], f"{side}_basis.{number}"
        covariance.lerp_(g @ g.mT, 1 - beta)
        if refresh:
            state[basis] = refresh_basis(covariance, state[basis])


def _sides(gradient: Tensor, largest: int) -> list[tuple[str, Tensor]]:
    return [(side, g) for side, g in (("left", gradient), ("right", gradient.mT)) if len(g) <= largest]


def kept_bytes(matrices: Sequence[tuple[int, int]], largest: int, itemsize: int) -> int:
    """Return the bytes of L, R, Q_L and Q_R of matrices with so many rows and columns."""
    return sum(2 * n * n * itemsize for shape in matrices for n in shape if n <= largest)
