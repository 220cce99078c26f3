"""Several linear maps of one input as a single matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class StackedLinear(nn.Linear):
    """Linear maps of the same input, computed as one: `(... d) -> (... r₁), (... r₂), …`.

    `weight` holds the rows of the first matrix, then those of the second, and so on; `rows` says how many each has, for
    whoever has to tell the matrices apart (an optimiser that treats each by itself, a checkpoint of another layout).
    """

    def __init__(self, dim: int, rows: Sequence[int], *, bias: bool = False) -> None:
        super().__init__(dim, sum(rows), bias=bias)
        self.rows = list(rows)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - several results, on purpose
        self, input: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... r"], ...]:
        """Return the outputs of the maps, in their order."""
        return torch.split(super().forward(input), self.rows, -1)
