"""The conformance kit catches broken rotary embeddings: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Plain
from pydantic import Field
from torch import Tensor

from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation


class RoundsItsFrequencies(Plain):
    """A buffer, which `.bfloat16()` converts."""

    def __init__(self, config: RotaryEmbedding.Config) -> None:
        super().__init__(config)
        self.register_buffer("inverse", super().frequencies(torch.zeros(1)), persistent=False)

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return self.inverse


class ComputesAnglesInHalf(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return Rotation.of((positions.unsqueeze(-1) * self.frequencies(positions)).half(), self.config.layout)


class LetsAutocastRound(Plain):
    """A matrix product of positions and frequencies, which autocast computes in bfloat16."""

    def forward(self, positions: Tensor) -> Rotation:
        angles = positions.unsqueeze(-1).float() @ self.frequencies(positions).unsqueeze(0)
        return Rotation.of(angles, self.config.layout)


class ReturnsHalfTables(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return super().forward(positions).to(torch.bfloat16)


class RotatesNothing(Plain):
    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return 0 * super().frequencies(positions)


class SquaresPositions(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return super().forward(positions**2 % 97)


class CountsColumns(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return super().forward(torch.arange(positions.shape[1]).expand_as(positions))


class ScalesTheTables(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        table = super().forward(positions)
        return replace(table, cos=1.1 * table.cos, sin=1.1 * table.sin)


class MislabelsItsLayout(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        angles = positions.unsqueeze(-1) * self.frequencies(positions)
        return replace(Rotation.of(angles, "interleaved"), layout=self.config.layout)


class KnowsOneLayout(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return replace(super().forward(positions), layout="half")


class Stretched(Plain):
    """A base that grows with the length of each row, and says so."""

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        stretch = (self.length(positions) / self.config.context).clamp(min=1)
        return super().frequencies(positions, 10000.0 * stretch.unsqueeze(-1) ** 2)

    def length(self, positions: Tensor) -> Tensor:
        return positions.amax(1, keepdim=True) + 1

    @property
    def constant_until(self) -> int | None:
        return self.config.context


class StretchesSilently(Stretched):
    constant_until = None


class StretchesAllRows(Stretched):
    def length(self, positions: Tensor) -> Tensor:
        return positions.max().reshape(1, 1) + 1


class TakesColumnsForLength(Stretched):
    """Which rows padded in a batch, and rows cut into chunks, do not have as many of as tokens."""

    def length(self, positions: Tensor) -> Tensor:
        return torch.full((len(positions), 1), positions.shape[1])


class TakesTheFirstColumnForLength(Stretched):
    def length(self, positions: Tensor) -> Tensor:
        return positions[:, :1] + 1


class RemembersTheLongest(Stretched):
    longest = torch.zeros(1, 1)

    def length(self, positions: Tensor) -> Tensor:
        self.longest = torch.maximum(self.longest, super().length(positions).amax().reshape(1, 1))
        return self.longest


class SharesABuffer(Plain):
    """Frequencies made once, by the settings of whoever is first."""

    inverse: Tensor | None = None

    def __init__(self, config: RotaryEmbedding.Config) -> None:
        super().__init__(config)
        if SharesABuffer.inverse is None:
            SharesABuffer.inverse = super().frequencies(torch.zeros(1))
        self.register_buffer("kept", SharesABuffer.inverse, persistent=False)

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return self.kept

    def _apply(self, fn, recurse: bool = True):
        kept, self.kept = self.kept, None
        super()._apply(fn, recurse).kept = kept
        return self


class WithBase(Plain):
    """A rotary embedding with a setting of its own, without a mistake."""

    class Config(RotaryEmbedding.Config):
        base: float = Field(10000.0, description="Base of the frequencies.")

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return super().frequencies(positions, self.config.base)


class RemembersByLength(WithBase):
    """A table for each length and size, whatever the base."""

    tables: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def forward(self, positions: Tensor) -> Rotation:
        key = (positions.shape[1], int(positions.max()), self.config.dim, positions.shape[0])
        if key not in self.tables:
            self.tables[key] = positions.unsqueeze(-1) * self.frequencies(positions)
        return Rotation.of(self.tables[key], self.config.layout)


class ReturnsOneTable(Plain):
    """A table of cosines and sines that all instances return views of."""

    tables: ClassVar[dict[tuple[int, str], Rotation]] = {}

    def forward(self, positions: Tensor) -> Rotation:
        length, kind = int(positions.max()) + 1, (self.config.dim, self.config.layout)
        if kind not in self.tables or self.tables[kind].cos.shape[1] < length:
            self.tables[kind] = super().forward(torch.arange(length).unsqueeze(0))
        table = self.tables[kind]
        first = int(positions.min())
        if len(positions) == 1 and positions.shape[1] == length - first:
            return replace(table, cos=table.cos[:, first:length], sin=table.sin[:, first:length])
        return replace(table, cos=table.cos[0, positions], sin=table.sin[0, positions])


class SavesItsFrequencies(Plain):
    """With another base, or for another number of features, the weights do not load."""

    def __init__(self, config: RotaryEmbedding.Config) -> None:
        super().__init__(config)
        self.register_buffer("inverse", super().frequencies(torch.zeros(1)))

    def _apply(self, fn, recurse: bool = True):
        return self  # stays in float32


class WritesIntoItsPositions(Plain):
    def forward(self, positions: Tensor) -> Rotation:
        return super().forward(positions.clamp_(min=0))


class DescribesNothing(Plain):
    class Config(RotaryEmbedding.Config):
        base: float = 10000.0


ROWS: list[Row] = [
    (DescribesNothing, "config_json", set()),
    (RoundsItsFrequencies, "float32_angles", set()),
    (ComputesAnglesInHalf, "float32_angles", {"relative"}),
    (LetsAutocastRound, "float32_angles", set()),
    (ReturnsHalfTables, "shape", {"norm_preserving", "relative", "float32_angles"}),
    (RotatesNothing, "positions_differ", set()),
    (CountsColumns, "positions_differ", {"constant_until", "documents"}),
    (SquaresPositions, "relative", {"positions_differ", "float32_angles"}),
    (ScalesTheTables, "norm_preserving", {"float32_angles"}),
    (MislabelsItsLayout, "layout", {"norm_preserving", "relative", "float32_angles", "positions_differ"}),
    (KnowsOneLayout, "layout", set()),
    (StretchesSilently, "constant_until", {"relative", "norm_preserving", "documents"}),
    (StretchesAllRows, "rows_apart", {"documents"}),
    (TakesColumnsForLength, "documents", {"positions_differ"}),
    (TakesTheFirstColumnForLength, "documents", set()),
    (RemembersTheLongest, "no_memory", {"rows_apart", "float32_angles", "instances_apart"}),
    (SharesABuffer, "instances_apart", set()),
    (RemembersByLength, "instances_apart", set()),
    (ReturnsOneTable, "instances_apart", set()),
    (SavesItsFrequencies, "state_dict", set()),
    (WritesIntoItsPositions, "inputs_unchanged", set()),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_rotary_embedding_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
