"""Environment `pacman`: the grids of the paper's experiments, as in its authors' code (arXiv 2111.08596)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from axon_advise.tabular import TabularEnvironment, TransitionTable, compact

__all__ = ["PacMan"]

_MAPS = {
    "small": ("P    ", " ### ", " #*  ", " ### ", "*   G"),
    "medium": ("P       *", " ### ### ", " #   #*# ", " #*#   # ", " ### ### ", "*       G"),
}
_MOVES = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}
_SOUTH = 1
_TURNS = {"published": 0.0, "turning": 0.5}


class PacMan(TabularEnvironment):
    """Eat all pellets in a maze with a ghost: rules and maps of the paper's code (arXiv 2111.08596, Abstract).

    A step earns −1, or +10 where a pellet is eaten, +500 more for the last one; it earns −500 more, and is the last,
    where Pac-Man and the ghost share a cell or change places. The state is the cell and the heading of the ghost, the
    cell of Pac-Man and the pellets left. The ghost goes straight on until blocked, then a random free way; the
    `turning` one also takes a random free way with probability ½ in each step, as the code means to, and does not.
    """

    class Config(TabularEnvironment.Config):
        """Which maze, and which ghost."""

        map: Literal["small", "medium"] = "small"
        """The maze: 5 × 5 cells with 2 pellets, or 9 × 6 with 4."""
        ghost: Literal["published", "turning"] = "published"
        """How the ghost moves."""

    config: Config

    def __init__(self, config: Config) -> None:
        rows = _MAPS[config.map]
        self._rows = rows
        self._cells = [(y, x) for y, row in enumerate(rows) for x, mark in enumerate(row) if mark != "#"]
        self._pellets = [i for i, (y, x) in enumerate(self._cells) if rows[y][x] == "*"]
        super().__init__(config)
        self.actions = list(_MOVES)

    def build(self) -> tuple[TransitionTable, Float[ndarray, " s"]]:
        """Return the table of the states that can be reached from the start, which is a single one."""
        moves, ghosts = self._moves(), self._ghost()
        n, p = len(self._cells), len(self._pellets)
        self._sizes = (n, 4, n, 2**p)
        ghost, heading, man, left = np.unravel_index(np.arange(int(np.prod(self._sizes))), self._sizes)
        shape = (len(ghost), 4, 4)  # state, action, the ghost's new heading
        there = np.broadcast_to(moves[man][:, :, None], shape)
        ghost_there = np.broadcast_to(moves[ghost][:, None, :], shape)
        bits = np.zeros(n, dtype=np.int64)
        bits[self._pellets] = 2 ** np.arange(p)
        eaten = (bits[there] & left[:, None, None]) > 0
        still = left[:, None, None] & ~bits[there]
        here, ghost_here = man[:, None, None], ghost[:, None, None]
        caught = (there == ghost_there) | ((there == ghost_here) & (ghost_there == here))
        won = eaten & (still == 0)
        reward = np.where(eaten, 10.0, -1.0) + 500.0 * won - 500.0 * caught
        headings = np.broadcast_to(np.arange(4), shape)
        following = np.ravel_multi_index((ghost_there, headings, there, still), self._sizes)
        probability = np.broadcast_to(ghosts[ghost, heading][:, None, :], shape)
        start = np.zeros(len(ghost))
        start[np.ravel_multi_index((self._at("G"), _SOUTH, self._at("P"), 2**p - 1), self._sizes)] = 1.0
        table, start, self._numbers = compact(TransitionTable(following, probability, reward, won | caught), start)
        return table, start

    def observe(self, states: Int[Tensor, " b"]) -> Float[Tensor, "b o"]:
        """Return one-hot vectors of the ghost's cell and heading and of Pac-Man's cell, and a bit for each pellet."""
        *places, left = np.unravel_index(self._numbers[states.numpy()], self._sizes)
        hot = [torch.nn.functional.one_hot(torch.from_numpy(x), n) for x, n in zip(places, self._sizes, strict=False)]
        bits = torch.from_numpy(left)[:, None] >> torch.arange(len(self._pellets)) & 1
        return torch.cat([*hot, bits], 1).float()

    def draw(self, state: int) -> str:
        """Return the maze with `#` walls, `*` pellets, `P` Pac-Man and `G` the ghost."""
        ghost, _, man, left = (int(x) for x in np.unravel_index(self._numbers[state], self._sizes))
        marks = {self._cells[cell]: "*" for i, cell in enumerate(self._pellets) if left >> i & 1}
        marks |= {self._cells[man]: "P", self._cells[ghost]: "G"}
        width = len(self._rows[0])
        inner = [
            "".join("#" if row[x] == "#" else marks.get((y, x), " ") for x in range(width))
            for y, row in enumerate(self._rows)
        ]
        return "\n".join(["#" * (width + 2), *(f"#{row}#" for row in inner), "#" * (width + 2)])

    def _at(self, mark: str) -> int:
        return next(i for i, (y, x) in enumerate(self._cells) if self._rows[y][x] == mark)

    def _moves(self) -> Int[ndarray, "n 4"]:
        """Return the cell that each way leads to from each cell; a wall leaves one where one is."""
        number = {cell: i for i, cell in enumerate(self._cells)}
        ways = [[number.get((y + dy, x + dx), i) for dy, dx in _MOVES.values()] for (y, x), i in number.items()]
        return np.array(ways)

    def _ghost(self) -> Float[ndarray, "n 4 4"]:
        """Return the probability of the ghost's new heading, by cell and heading."""
        moves = self._moves()
        free = moves != np.arange(len(moves))[:, None]
        random = np.broadcast_to((free / free.sum(1, keepdims=True))[:, None], (len(moves), 4, 4))
        turns = np.where(free, _TURNS[self.config.ghost], 1.0)[..., None]
        return turns * random + (1 - turns) * np.eye(4)
