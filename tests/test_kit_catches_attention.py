"""The conformance kit catches attentions that see or compute what they should not."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Healthy
from torch import Tensor, nn

from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import LayerCache
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.interfaces.scope import Scope
from axon_core.interfaces.tensor_split import TensorSplit
from axon_core.nn.attention import attend
from axon_core.testing import examine


class SeesTheFuture(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, Scope(scope.positions, scope.keys, causal=False, padded=scope.padded))


class SeesTheFutureInTraining(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return SeesTheFuture.mix(self, q, k, v, scope) if self.training else super().mix(q, k, v, scope)


class SeesPadding(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        keys = torch.arange(k.shape[1]).unsqueeze(0)
        causal = scope.causal and k.shape[1] >= q.shape[1]
        return attend(q, k, v, Scope(keys[:, k.shape[1] - q.shape[1] :], keys, causal=causal))


class SeesOtherDocuments(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, Scope(scope.positions, scope.keys, causal=scope.causal, padded=scope.padded))


class RotatesRowsWhole(Healthy):
    """Takes the rotation at the scope's positions, not the scope's rotation."""

    def rotate(self, scope: Scope, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        if self.rotary is None:
            return q, k
        rotation = self.rotary(scope.positions).to(q.dtype)
        return rotation(q), rotation(k)


class UsesBatchStatistics(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v - v.mean(0, keepdim=True), scope)


class UsesBatchStatisticsInTraining(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v - v.mean(0, keepdim=True) if self.training else v, scope)


class SoftmaxOverNothing(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        out = super().mix(q, k, v, scope)
        return out if scope.valid is None else out.masked_fill(~scope.valid[:, :, None, None], float("nan"))


class SoftmaxInHalfPrecision(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
        scores = (scores * q.shape[-1] ** -0.5).masked_fill(~scope.mask(k.shape[1]), float("-inf"))
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


class ReturnsFloat32(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        return super().forward(x, scope, memory=memory, cache=cache).float()


class BreaksAutocast(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        out = super().forward(x, scope, memory=memory, cache=cache)
        with torch.autocast("cpu", enabled=False):
            return out @ self.out.weight


class HasUnusedParameter(Healthy):
    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.temperature = nn.Parameter(torch.ones(config.n_heads))


class IsRandomInEvaluation(Healthy):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v, scope) * (1 + 1e-6 * torch.rand(1)).to(v.dtype)


class IgnoresRotary(Healthy):
    def rotate(self, scope: Scope, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return q, k


class IgnoresMemory(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        if memory is not None:
            scope = Scope.over(x, causal=False)
        return super().forward(x, scope, cache=cache)


class SqueezesABatchOfOne(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        return super().forward(x, scope, memory=memory, cache=cache).squeeze(0)


class DetachesItsKeys(Healthy):
    """One weight makes queries, keys and values: it gets a gradient all the same."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k.detach(), v, scope)


class DetachesItsMemory(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        return super().forward(x, scope, memory=None if memory is None else memory.detach(), cache=cache)


class NormalisesOverHeads(Healthy):
    """What a head computes depends on the other heads, which another process has."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        out = super().mix(q, k, v, scope)
        return out * (out.square().mean((-2, -1), keepdim=True) + 1).rsqrt()

    def tensor_split(self) -> TensorSplit:
        return TensorSplit(columns=["qkv"], rows=["out"], units=self.config.n_heads, unit="heads")


class ForgetsALayer(NormalisesOverHeads):
    """Its values are whole in each process."""

    def tensor_split(self) -> TensorSplit:
        return TensorSplit(columns=["qkv"], rows=[], units=self.config.n_heads, unit="heads")


class Divides(Healthy):
    """Without a mistake."""

    def tensor_split(self) -> TensorSplit:
        return TensorSplit(columns=["qkv"], rows=["out"], units=self.config.n_heads, unit="heads")


CACHED = {"cached_steps", "cached_chunks", "cached_ragged", "caches_apart", "cache_reused"}

ROWS: list[Row] = [
    (SeesTheFuture, "causal", {"documents", "bfloat16", "autocast", *CACHED}),
    (SeesTheFutureInTraining, "causal", set()),
    (SeesPadding, "padding", {"documents", "cached_ragged", "cross"}),
    (SeesOtherDocuments, "documents", set()),
    (RotatesRowsWhole, "documents", set()),
    (UsesBatchStatistics, "neighbours", {"padding", "cached_ragged", "cross"}),
    (UsesBatchStatisticsInTraining, "neighbours", set()),
    (SoftmaxOverNothing, "padded_rows_finite", set()),
    (SoftmaxInHalfPrecision, "large_logits", set()),
    (ReturnsFloat32, "bfloat16", set()),
    (BreaksAutocast, "autocast", set()),
    (SqueezesABatchOfOne, "shape", {"padding", "documents", "neighbours", "cached_ragged", "cross"}),
    (DetachesItsKeys, "gradient", set()),
    (DetachesItsMemory, "gradient", set()),
    (HasUnusedParameter, "gradient", set()),
    (IsRandomInEvaluation, "deterministic", {"state_dict", "caches_apart"}),
    (IgnoresRotary, "rotary", set()),
    (IgnoresMemory, "cross", {"cached_cross"}),
    (NormalisesOverHeads, "divided", set()),
    (ForgetsALayer, "divided", set()),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_attention_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)


def test_an_attention_that_can_be_divided_has_no_mistake() -> None:
    assert examine(Divides) == {}
