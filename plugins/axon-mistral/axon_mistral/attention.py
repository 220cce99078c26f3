"""Sliding-window attention: grouped-query attention over the last tokens, whose cache holds only these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor

from axon_core.interfaces import LayerCache, Scope, StateSpec
from axon_core.nn import attend
from axon_gqa.attention import GroupedQueryAttention

__all__ = ["SlidingWindowAttention", "attend_near"]

_BLOCK = 512
"""Queries whose keys are read together: more would read further keys in vain, fewer would be many small products."""


@dataclass(frozen=True)
class _Near:
    """The keys at most `window` − 1 tokens before a query."""

    window: int

    def __call__(self, query: Int[Tensor, "b 1 n 1"], key: Int[Tensor, "b 1 1 m"]) -> Bool[Tensor, "b 1 n m"]:
        """Return which keys are inside the window of which queries."""
        return key > query - self.window


class SlidingWindowAttention(GroupedQueryAttention):
    """Grouped-query attention in which a token sees itself and the `window` − 1 tokens before it: key j iff j > i − w.

    Information moves on by w − 1 tokens a layer, so that n layers see n (w − 1) tokens back. The cache holds the last w
    tokens, each in the slot of its position modulo w. Source: arXiv 2310.06825, Section 2. It is causal only.
    """

    class Config(GroupedQueryAttention.Config):
        """Sizes of sliding-window attention."""

        window: PositiveInt = 4096
        """How many tokens w a token sees, itself included (arXiv 2310.06825, Table 1)."""

    config: Config
    cross = False
    bidirectional = False
    examples = ({"window": 3}, {"window": 4, "n_kv_heads": 1, "qk_norm": "rmsnorm"})

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token gathers from the window that ends with it."""
        q, k, v = self.qkv(x)
        q, k = scope.rotate(self.rotary, self.q_norm(q), self.k_norm(k))
        if cache is not None:
            k, v = cache.append(k=k, v=v, in_order=not _masks_nothing(scope))
            scope = cache.reach(scope, "k")
        return self.out(attend_near(q, k, v, scope, self.config.window).flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        """Keys and values of the tokens in the window."""
        kept = super().state().items()
        return {name: replace(state, window=self.config.window, any_order=True) for name, state in kept}


def attend_near(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k d"],
    scope: Scope,
    window: int,
) -> Float[Tensor, "b n h d"]:
    """Return causal attention in which key j is visible to query i iff i − window < j ≤ i.

    Source: arXiv 2310.06825, Section 2. The keys are the last m of the scope's. Of a long text, blocks of queries read
    only the keys in reach: the work is O(n · window) instead of O(n²).
    """
    n, m = q.shape[1], k.shape[1]
    if scope.kernel is None:
        if m <= window:  # nothing is further away
            return attend(q, k, v, scope)
        if scope.documents is None and n > _BLOCK and m > window + _BLOCK:
            return _in_blocks(q, k, v, scope, window)
        if _masks_nothing(scope):
            return attend(q, k[:, m - window :], v[:, m - window :], scope)
    return attend(q, k, v, scope, narrow=_Near(window))


def _masks_nothing(scope: Scope) -> bool:
    """Whether there is one token a row, which sees whatever is in its window, in whatever order."""
    return scope.kernel is None and scope.positions.shape[1] == 1 and scope.sees_all(1)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scope: Scope, window: int) -> Float[Tensor, "b n h d"]:
    n, m = q.shape[1], k.shape[1]
    out: list[Tensor] = []
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        first, last = max(0, m - n + start + 1 - window), m - n + end
        part = _part(scope, m, slice(start, end), slice(first, last))
        out.append(attend(q[:, start:end], k[:, first:last], v[:, first:last], part, narrow=_Near(window)))
    return torch.cat(out, 1)


def _part(scope: Scope, m: int, queries: slice, keys: slice) -> Scope:
    """Return the scope of some of the queries and some of the last m keys."""

    def make() -> Scope:
        if scope.padded:
            reached = scope.keys[:, scope.keys.shape[1] - m :][:, keys]
            return Scope(scope.positions[:, queries], reached, causal=True, padded=True)
        places = torch.arange(size, device=scope.keys.device).unsqueeze(0)
        return Scope(places[:, size - count :], places, causal=True)

    size, count = keys.stop - keys.start, queries.stop - queries.start
    # Without padding, positions follow each other: all blocks of one size have the same mask.
    return scope.once(("near", m, queries, keys) if scope.padded else ("near", size, count), make)
