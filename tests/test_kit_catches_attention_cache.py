"""The conformance kit catches attentions that decode with a cache other than they run at once."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Healthy
from pydantic import Field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import LayerCache, StateSpec
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend


def _window_of_four(query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() < 4


class CacheOffByOne(Healthy):
    """Keeps one token fewer than the window it attends to."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, scope, narrow=_window_of_four)

    def state(self) -> Mapping[str, StateSpec]:
        return {name: StateSpec(kept.shape, window=3) for name, kept in super().state().items()}


class RotatesAfterCaching(Healthy):
    """Rotates all keys by the positions of the first pass's queries."""

    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        if cache is None or memory is not None or self.rotary is None:
            return super().forward(x, scope, memory=memory, cache=cache)
        q, k, v = self.qkv(x)
        k, v = cache.append(k=k, v=v)
        (q,) = scope.rotate(self.rotary, q)
        k = self.rotary(torch.arange(k.shape[1]).unsqueeze(0)).to(k.dtype)(k)  # slots, not positions
        return self.out(attend(q, k, v, scope).flatten(-2))


class PaddingEntersState(Healthy):
    """A running mean of everything, padding included."""

    cross = False

    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        valid = torch.ones(x.shape[:2], dtype=torch.bool) if scope.valid is None else scope.valid
        seen = scope.mask(x.shape[1]).squeeze(1).expand(-1, x.shape[1], x.shape[1]).to(x.dtype)
        total, count = seen @ (x * valid.unsqueeze(-1)), (seen * valid.unsqueeze(1)).sum(-1, keepdim=True)
        if cache is not None:
            total, count = total + cache["total"].unsqueeze(1), count + cache["count"].unsqueeze(1)
            cache["total"], cache["count"] = cache["total"] + x.sum(1), cache["count"] + x.shape[1]
        q, k, v = self.qkv(total / count.clamp(min=1))
        return self.out((self.rotate(scope, q, k)[0] + k + v).flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        return {"total": StateSpec((self.config.dim,), per_token=False), "count": StateSpec((1,), per_token=False)}


class KeepsStateInModule(Healthy):
    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        before = self.kept if cache.start else None
        self.kept = (k, v) if before is None else tuple(torch.cat(pair, 1) for pair in zip(before, (k, v), strict=True))
        cache.append(k=k, v=v)
        return self.kept


class KeepsStateBesideCache(Healthy):
    """Keeps a table of its own, from cache to keys and values."""

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.table: WeakKeyDictionary[LayerCache, tuple[Tensor, ...]] = WeakKeyDictionary()

    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        old = self.table.get(cache, (k[:, :0], v[:, :0]))
        self.table[cache] = tuple(torch.cat(pair, 1) for pair in zip(old, (k, v), strict=True))
        cache.append(k=k, v=v)
        return self.table[cache]


class DeclaresTooMuch(Healthy):
    def state(self) -> Mapping[str, StateSpec]:
        return {**super().state(), "spare": StateSpec((64,))}


class ExchangesBuffers(Healthy):
    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        for name in ("k", "v"):
            cache.buffers[name] = cache.buffers[name].clone()
        return super().keep(cache, k, v)


class ReadsMemoryAgain(Healthy):
    def read(self, cache: LayerCache, memory: Tensor) -> tuple[Tensor, ...]:
        return self.qkv.key_value(memory)


class AlignsMaskTopLeft(Healthy):
    """What `is_causal=True` does with more keys than queries."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        if scope.padded or scope.documents is not None or not scope.causal:
            return super().mix(q, k, v, scope)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class KeepsUnrotatedKeys(Healthy):
    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        if cache is None or memory is not None:
            return super().forward(x, scope, memory=memory, cache=cache)
        q, k, v = self.qkv(x)
        k, v = cache.append(k=k, v=v)
        return self.out(attend(*scope.rotate(self.rotary, q), k, v, scope).flatten(-2))


class HasAWindowThatNeverBinds(Healthy):
    """What is out of the window of 9 is seen all the same; the kit's rows are no longer."""

    examples = ({"window": 9}, {"window": 64})

    class Config(Attention.Config):
        window: int = Field(description="Tokens that the cache holds.")

    def state(self) -> Mapping[str, StateSpec]:
        return {name: StateSpec(kept.shape, window=self.config.window) for name, kept in super().state().items()}


CACHED = {"cached_steps", "cached_chunks", "cached_ragged", "caches_apart", "cache_reused"}

ROWS: list[Row] = [
    (KeepsUnrotatedKeys, "cached_one_pass", {"bfloat16", "autocast", *CACHED}),
    (HasAWindowThatNeverBinds, "window", set()),
    (CacheOffByOne, "cached_steps", {"bfloat16", "autocast", *CACHED}),
    (RotatesAfterCaching, "cached_ragged", set()),
    (PaddingEntersState, "cached_ragged", set()),
    (KeepsStateInModule, "caches_apart", {"cache_reused"}),
    (KeepsStateBesideCache, "cache_reused", set()),
    (DeclaresTooMuch, "state", set()),
    (ExchangesBuffers, "state", set()),
    (ReadsMemoryAgain, "cached_cross", set()),
    (AlignsMaskTopLeft, "cached_chunks", {"bfloat16", "autocast", *CACHED}),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_cache_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
