"""The conformance kit catches broken rotary embeddings and norms: each by the check that is meant for its mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from axon_core.interfaces.norm import Norm
from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation
from axon_core.testing import examine


class Plain(RotaryEmbedding):
    """A rotary embedding without a mistake; the broken ones below override one step of it."""

    def forward(self, positions: Tensor) -> Rotation:
        return Rotation.of(positions.unsqueeze(-1) * self.frequencies(positions), self.config.layout)

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return base ** (-torch.arange(0, self.config.dim, 2) / self.config.dim)


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


@pytest.mark.parametrize(
    ("broken", "caught_by", "also"),
    [
        (SharesABuffer, "instances_apart", set()),
        (RemembersByLength, "instances_apart", set()),
        (ReturnsOneTable, "instances_apart", set()),
        (SavesItsFrequencies, "state_dict", set()),
        (WritesIntoItsPositions, "inputs_unchanged", set()),
        (RoundsItsFrequencies, "float32_angles", set()),
        (ComputesAnglesInHalf, "float32_angles", {"relative"}),
        (LetsAutocastRound, "float32_angles", set()),
        (ReturnsHalfTables, "shape", {"norm_preserving", "relative", "float32_angles"}),
        (RotatesNothing, "positions_differ", set()),
        (SquaresPositions, "relative", {"positions_differ", "float32_angles"}),
        (ScalesTheTables, "norm_preserving", {"float32_angles"}),
        (MislabelsItsLayout, "layout", {"norm_preserving", "relative", "float32_angles", "positions_differ"}),
        (KnowsOneLayout, "layout", set()),
        (StretchesSilently, "constant_until", {"relative", "norm_preserving"}),
        (StretchesAllRows, "rows_apart", set()),
        (RemembersTheLongest, "no_memory", {"rows_apart", "float32_angles", "instances_apart"}),
    ],
)
def test_broken_rotary_embedding_is_caught(broken: type[RotaryEmbedding], caught_by: str, also: set[str]) -> None:
    failures = examine(broken)
    assert caught_by in failures, failures
    assert failures.keys() - {caught_by} <= also, failures


@pytest.mark.parametrize("healthy", [Plain, WithBase, Stretched])
def test_healthy_rotary_embedding_passes(healthy: type[RotaryEmbedding]) -> None:
    assert examine(healthy) == {}


class RootMeanSquare(Norm):
    """A norm without a mistake; the broken ones below override one step of it."""

    def __init__(self, config: Norm.Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        return (wide * self.scale(wide)).to(x.dtype) * self.weight.to(x.dtype)

    def scale(self, x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class ForgetsEpsilon(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return x.square().mean(-1, keepdim=True).rsqrt()


class AddsEpsilonAfterTheRoot(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return 1 / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6)


class NormalisesOverTheBatch(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return (x.square().mean() + 1e-6).rsqrt()


class NormalisesOverTheBatchInTraining(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return (x.square().mean() + 1e-6).rsqrt() if self.training else super().scale(x)


class SumsInHalf(RootMeanSquare):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x) * self.weight.to(x.dtype)


class ReturnsFloat32(RootMeanSquare):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class DetachesItsScale(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x).detach()


class HasUnusedBias(RootMeanSquare):
    def __init__(self, config: Norm.Config) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.dim))


class HasHiddenScale(RootMeanSquare):
    def __init__(self, config: Norm.Config) -> None:
        super().__init__(config)
        self.gain = torch.rand(1)

    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x) * self.gain


class KeepsAGainOfItsClass(RootMeanSquare):
    table = torch.ones(1)

    def __init__(self, config: Norm.Config) -> None:
        super().__init__(config)
        self.register_buffer("gain", self.table)

    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x) * self.gain


class WritesIntoItsInput(RootMeanSquare):
    """`.float()` copies half precision alone."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.detach().float()
        wide.sub_(wide.mean(-1, keepdim=True))
        return super().forward(x - x.detach().float().mean(-1, keepdim=True).to(x.dtype))


@pytest.mark.parametrize(
    ("broken", "caught_by", "also"),
    [
        (KeepsAGainOfItsClass, "instances_apart", set()),
        (WritesIntoItsInput, "inputs_unchanged", {"gradient"}),
        (ForgetsEpsilon, "zero", set()),
        (AddsEpsilonAfterTheRoot, "zero", set()),
        (NormalisesOverTheBatch, "vectors_apart", set()),
        (NormalisesOverTheBatchInTraining, "vectors_apart", set()),
        (SumsInHalf, "statistics_in_float32", set()),
        (ReturnsFloat32, "shape", set()),
        (DetachesItsScale, "gradient", set()),
        (HasUnusedBias, "gradient", set()),
        (HasHiddenScale, "state_dict", set()),
    ],
)
def test_broken_norm_is_caught(broken: type[Norm], caught_by: str, also: set[str]) -> None:
    failures = examine(broken)
    assert caught_by in failures, failures
    assert failures.keys() - {caught_by} <= also, failures


def test_healthy_norm_passes() -> None:
    assert examine(RootMeanSquare) == {}
