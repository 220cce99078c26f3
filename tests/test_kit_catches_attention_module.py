"""The conformance kit catches attentions with a faulty config or state dict, shared memory, or inputs written to."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Healthy
from pydantic import Field
from torch import Tensor, nn

from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import LayerCache
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend


def _window_of_four(query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() < 4


class HidesAFieldFromJSON(Healthy):
    examples = ({"temperature": 2.0},)

    class Config(Attention.Config):
        temperature: float = Field(1.0, exclude=True, description="Left out of the JSON.")


class DescribesNothing(Healthy):
    class Config(Attention.Config):
        temperature: float = 1.0


class HasHiddenTensor(Healthy):
    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.scale = torch.rand(1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v, scope) * self.scale.to(v.dtype)


class SharesAParameter(Healthy):
    shared = nn.Parameter(torch.ones(1))

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.scale = self.shared

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v, scope) * self.scale


class SharesABuffer(Healthy):
    table = torch.ones(1)

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.register_buffer("scale", self.table)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v, scope) * self.scale.to(v.dtype)


class KeepsATensorOfItsClass(Healthy):
    scale = torch.ones(1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v, scope) * self.scale.to(v.dtype)


class WritesIntoItsInput(Healthy):
    """`.float()` copies half precision alone."""

    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        wide = x.detach().float().clamp_(-2, 2)
        return super().forward(wide.to(x.dtype), scope, memory=memory, cache=cache)


class WritesIntoItsMemory(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        if memory is not None:
            memory.clamp_(-2, 2)
        return super().forward(x, scope, memory=memory, cache=cache)


class WritesIntoTheMask(Healthy):
    """A window, which all layers after it then have too."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        mask = scope.mask(k.shape[1])
        mask &= _window_of_four(scope.positions[:, None, :, None], scope.keys[:, None, None])
        return attend(q, k, v, scope, narrow=_window_of_four)


ROWS: list[Row] = [
    (HidesAFieldFromJSON, "config_json", set()),
    (DescribesNothing, "config_json", set()),
    (HasHiddenTensor, "state_dict", set()),
    (SharesAParameter, "instances_apart", {"gradient"}),
    (SharesABuffer, "instances_apart", set()),
    (KeepsATensorOfItsClass, "instances_apart", set()),
    (WritesIntoItsInput, "inputs_unchanged", {"padded_rows_finite", "gradient"}),
    (WritesIntoItsMemory, "inputs_unchanged", {"gradient"}),
    (WritesIntoTheMask, "inputs_unchanged", set()),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_module_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
