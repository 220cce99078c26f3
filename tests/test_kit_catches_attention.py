"""The conformance kit catches broken attentions: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import pytest
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from axon_core.attend import QKV, attend
from axon_core.cache import LayerCache, State
from axon_core.interfaces.attention import Attention
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.scope import Scope
from axon_core.testing import examine


class Healthy(Attention):
    """Multi-head attention without a mistake; the broken ones below override one step of it."""

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.qkv = QKV(config.dim, config.n_heads, config.n_heads, config.head_dim)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        if memory is None:
            q, k, v = self.qkv(x)
            q, k = self.rotate(scope, q, k)
            k, v = (k, v) if cache is None else self.keep(cache, k, v)
        else:
            q = self.qkv.query(x)
            k, v = self.qkv.key_value(memory) if cache is None else self.read(cache, memory)
        return self.out(self.mix(q, k, v, scope).flatten(-2))

    def rotate(self, scope: Scope, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return scope.rotate(self.rotary, q, k)

    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return cache.append(k=k, v=v)

    def read(self, cache: LayerCache, memory: Tensor) -> tuple[Tensor, ...]:
        return cache.once(lambda: self.qkv.key_value(memory))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, scope)

    def state(self) -> Mapping[str, State]:
        per_token = State((self.config.n_heads, self.config.head_dim))
        return {"k": per_token, "v": per_token}


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


class AlignsMaskTopLeft(Healthy):
    """What `is_causal=True` does with more keys than queries."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        if scope.padded or scope.documents is not None or not scope.causal:
            return super().mix(q, k, v, scope)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class CacheOffByOne(Healthy):
    """Keeps one token fewer than the window it attends to."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, scope, narrow=_window_of_four)

    def state(self) -> Mapping[str, State]:
        return {name: State(kept.shape, window=3) for name, kept in super().state().items()}


def _window_of_four(query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() < 4


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

    def state(self) -> Mapping[str, State]:
        return {"total": State((self.config.dim,), per_token=False), "count": State((1,), per_token=False)}


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
    def state(self) -> Mapping[str, State]:
        return {**super().state(), "spare": State((64,))}


class ExchangesBuffers(Healthy):
    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        for name in ("k", "v"):
            cache.buffers[name] = cache.buffers[name].clone()
        return super().keep(cache, k, v)


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


class ReadsMemoryAgain(Healthy):
    def read(self, cache: LayerCache, memory: Tensor) -> tuple[Tensor, ...]:
        return self.qkv.key_value(memory)


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


CACHED = {"cached_steps", "cached_chunks", "cached_ragged", "caches_apart", "cache_reused"}


@pytest.mark.parametrize(
    ("broken", "caught_by", "also"),
    [
        (SeesTheFuture, "causal", {"documents", "bfloat16", "autocast", *CACHED}),
        (SeesTheFutureInTraining, "causal", set()),
        (SeesPadding, "padding", {"documents", "cached_ragged", "cross"}),
        (SeesOtherDocuments, "documents", set()),
        (AlignsMaskTopLeft, "cached_chunks", {"bfloat16", "autocast", *CACHED}),
        (CacheOffByOne, "cached_steps", {"bfloat16", "autocast", *CACHED}),
        (RotatesAfterCaching, "cached_ragged", set()),
        (PaddingEntersState, "cached_ragged", set()),
        (KeepsStateInModule, "caches_apart", {"cache_reused"}),
        (KeepsStateBesideCache, "cache_reused", set()),
        (DeclaresTooMuch, "state", set()),
        (ExchangesBuffers, "state", set()),
        (UsesBatchStatistics, "neighbours", {"padding", "cached_ragged", "cross"}),
        (UsesBatchStatisticsInTraining, "neighbours", set()),
        (SoftmaxOverNothing, "padded_rows_finite", set()),
        (SoftmaxInHalfPrecision, "large_logits", set()),
        (ReturnsFloat32, "bfloat16", set()),
        (BreaksAutocast, "autocast", set()),
        (HasUnusedParameter, "gradient", set()),
        (IsRandomInEvaluation, "deterministic", {"state_dict", "caches_apart"}),
        (IgnoresRotary, "rotary", set()),
        (IgnoresMemory, "cross", {"cached_cross"}),
        (ReadsMemoryAgain, "cached_cross", set()),
        (HidesAFieldFromJSON, "config_json", set()),
        (DescribesNothing, "config_json", set()),
        (HasHiddenTensor, "state_dict", set()),
        (SharesAParameter, "instances_apart", set()),
        (SharesABuffer, "instances_apart", set()),
        (KeepsATensorOfItsClass, "instances_apart", set()),
        (WritesIntoItsInput, "inputs_unchanged", {"padded_rows_finite"}),
        (WritesIntoItsMemory, "inputs_unchanged", set()),
        (WritesIntoTheMask, "inputs_unchanged", set()),
    ],
)
def test_broken_attention_is_caught(broken: type[Attention], caught_by: str, also: set[str]) -> None:
    failures = examine(broken)
    assert caught_by in failures
    assert broken.__name__ in failures[caught_by]
    assert failures.keys() - {caught_by} <= also, failures


def test_healthy_attention_passes() -> None:
    assert examine(Healthy) == {}


class DropsOut(Healthy):
    """Dropout where it belongs, with the usual rate and one that drops nearly everything."""

    examples = ({}, {"dropout": 0.9})

    class Config(Attention.Config):
        dropout: float = Field(0.1, description="Share of the values that are dropped in training.")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return dropout(super().mix(q, k, v, scope), self.config.dropout, self.training)


class LeaksThroughItsDropout(DropsOut):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v + v[:, -1:] if self.training else v, scope)


def test_dropout_hides_no_leak_and_is_none() -> None:
    assert examine(DropsOut) == {}
    failures = examine(LeaksThroughItsDropout)
    assert failures.keys() == {"causal"}
    assert "input: tokens from 1 on replaced, in training mode; results before 1" in failures["causal"]


def test_every_example_counts() -> None:
    class FirstExampleBreaks(Healthy):
        examples = ({"window": 2}, {})

        class Config(Attention.Config):
            window: int = Field(0, description="Breaks causality where it is not 0.")

        def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
            return SeesTheFuture.mix(self, q, k, v, scope) if self.config.window else attend(q, k, v, scope)

    assert "FirstExampleBreaks[window=2] breaks the rule 'causal'" in examine(FirstExampleBreaks)["causal"]


def test_part_that_cannot_be_built_says_where_to_give_its_options() -> None:
    class NeedsAWidth(Healthy):
        class Config(Attention.Config):
            width: int = Field(description="Has no default.")

    failures = examine(NeedsAWidth)
    assert (
        "found: width: this field is required; name options that work in the class attribute `examples`"
        in failures["causal"]
    )
    assert examine(NeedsAWidth, width=3) == {}


def test_failure_says_what_broke_on_which_input_with_which_values_and_why() -> None:
    lines = examine(SeesTheFuture)["causal"].splitlines()
    assert lines[0] == (
        "SeesTheFuture breaks the rule 'causal': In a causal scope no token's result depends on later tokens, "
        "in training too."
    )
    assert lines[1] == "  input: tokens from 1 on replaced, in evaluation mode; results before 1"
    assert lines[2].startswith("  found: ")
    assert " instead of " in lines[2]
    assert "; difference " in lines[2]
    assert lines[3].startswith("  usual cause: a mask left out")
