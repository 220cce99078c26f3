"""Environment `grid`: a small grid world in which several actions of a state can be optimal.

It is not from the paper (arXiv 2111.08596, Abstract), whose learner it serves.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from axon_advise.tabular import TabularEnvironment, TransitionTable

__all__ = ["Grid"]

_MOVES = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}


class Grid(TabularEnvironment):
    """Walk from the north-west corner to the south-east one; each step earns −1, the last one 10.

    It is a test of the learner (arXiv 2111.08596, Abstract). Away from the south and east walls, both south and east
    are optimal: from start to goal there are many shortest ways. With probability `slip` a random move is made instead
    of the chosen one.
    """

    class Config(TabularEnvironment.Config):
        """Its size, and how slippery it is."""

        size: int = Field(default=5, ge=2, le=50)
        """Cells along a side."""
        slip: float = Field(default=0.0, ge=0, lt=1)
        """Probability of a random move."""
        limit: int = Field(default=100, ge=1)
        """Actions after which an episode is cut off."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.actions = list(_MOVES)

    def build(self) -> tuple[TransitionTable, Float[ndarray, " s"]]:
        """Return the table and the start. State `size`·row + column; the goal is the last."""
        n, slip = self.config.size, self.config.slip
        row, column = np.divmod(np.arange(n * n), n)
        moves = np.array(list(_MOVES.values()))
        rows = np.clip(row[:, None] + moves[:, 0], 0, n - 1)
        columns = np.clip(column[:, None] + moves[:, 1], 0, n - 1)
        shape = (n * n, 4, 4)
        following = np.broadcast_to((rows * n + columns)[:, None, :], shape)
        probability = np.broadcast_to(slip / 4 + (1 - slip) * np.eye(4), shape)
        goal = following == n * n - 1
        start = np.zeros(n * n)
        start[0] = 1.0
        return TransitionTable(following, probability, np.where(goal, 10.0, -1.0), goal), start

    def draw(self, state: int) -> str:
        """Return the grid with `A` for the walker and `x` for the goal."""
        n = self.config.size
        cells = ["."] * (n * n)
        cells[-1] = "x"
        cells[state] = "A"
        return "\n".join("".join(cells[n * y : n * y + n]) for y in range(n))
