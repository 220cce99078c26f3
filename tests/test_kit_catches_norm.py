"""The conformance kit catches broken norms: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import RootMeanSquare
from torch import Tensor, nn

from axon_core.interfaces.norm import Norm


class ForgetsEpsilon(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return x.square().mean(-1, keepdim=True).rsqrt()


class AddsEpsilonAfterTheRoot(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return 1 / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6)


class NormalisesOverTheBatch(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return (x.square().mean() + 1e-6).rsqrt()


class NormalisesOverTheBatchInEvaluation(RootMeanSquare):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x) if self.training else (x.square().mean() + 1e-6).rsqrt()


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


class BreaksAutocast(RootMeanSquare):
    """A product that autocast computes in bfloat16, and one that it does not, with the weight in float32."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ torch.full((x.shape[-1], 1), 1 / x.shape[-1], dtype=x.dtype)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x) + (mean @ self.weight[None, :]).to(x.dtype)


class DescribesNothing(RootMeanSquare):
    class Config(Norm.Config):
        eps: float = 1e-6


ROWS: list[Row] = [
    (ForgetsEpsilon, "zero", set()),
    (AddsEpsilonAfterTheRoot, "zero", set()),
    (NormalisesOverTheBatch, "vectors_apart", set()),
    (NormalisesOverTheBatchInEvaluation, "vectors_apart", set()),
    (BreaksAutocast, "autocast", set()),
    (DescribesNothing, "config_json", set()),
    (NormalisesOverTheBatchInTraining, "vectors_apart", set()),
    (SumsInHalf, "statistics_in_float32", set()),
    (ReturnsFloat32, "shape", set()),
    (DetachesItsScale, "gradient", set()),
    (HasUnusedBias, "gradient", set()),
    (HasHiddenScale, "state_dict", set()),
    (KeepsAGainOfItsClass, "instances_apart", set()),
    (WritesIntoItsInput, "inputs_unchanged", {"gradient"}),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_norm_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
