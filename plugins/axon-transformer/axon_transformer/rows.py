"""Attention and cache of a packed model: each token by itself, so that its bits do not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core import Cache, LayerCache, Scope, StateSpec
from axon_core.interfaces import Between, CacheStep
from axon_core.nn import attend, attend_blocks, scores_between

__all__ = ["BeamCache", "SourceKernel"]


class SourceKernel:
    """Attention to source sentences (`Scope.kernel`), of which each query sees the valid tokens, by `attend_blocks`.

    Source: arXiv 1706.03762, Section 3.2.1. A source sentence is one block. Sentences that are finished are not
    removed: the others only stop naming them.

    Args:
        lengths: how many tokens of each sentence are valid; padding comes after them.
    """

    def __init__(self, lengths: Int[Tensor, " s"]) -> None:
        self._lengths = lengths.int()
        self._blocks = torch.arange(len(lengths), dtype=torch.int32, device=lengths.device)
        self._index: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def keep(self, sentences: Int[Tensor, " r"]) -> SourceKernel:
        """Return the kernel of these sentences alone, in this order, for keys and values of all."""
        kept = SourceKernel(self._lengths[sentences])
        kept._blocks = self._blocks[sentences]
        return kept

    def __call__(
        self,
        q: Float[Tensor, "s n h d"],
        k: Float[Tensor, "all m k d"],
        v: Float[Tensor, "all m k e"],
        *,
        scale: float | None,
        narrow: Between | None,
        bias: Between | None,
    ) -> Float[Tensor, "s n h e"]:
        """Return what `attend` returns for these arguments (arXiv 1706.03762, Section 3.2.1)."""
        if narrow is not None or bias is not None:
            blocks = self._blocks.long()
            plain = self._plain(q, k.shape[1])
            return attend(q, k[blocks], v[blocks], plain, scale=scale, narrow=narrow, bias=bias)
        n = q.shape[1]
        if n not in self._index:
            rows = torch.arange(len(self._blocks), dtype=torch.int32, device=q.device).repeat_interleave(n)
            self._index[n] = self._blocks.unsqueeze(1), rows, self._lengths.repeat_interleave(n)
        out = attend_blocks(q.flatten(0, 1), k.contiguous(), v.contiguous(), *self._index[n], scale=scale)
        return out.unflatten(0, q.shape[:2])

    def _plain(self, q: Float[Tensor, "s n h d"], m: int) -> Scope:
        """The scope that says the same without a kernel, for attentions that narrow it or add a bias."""
        keys = torch.arange(m, device=q.device).expand(len(q), m)
        keys = keys.masked_fill(keys >= self._lengths.unsqueeze(1), -1)
        return Scope(torch.arange(q.shape[1], device=q.device).unsqueeze(0), keys, causal=False, padded=True)


class _BeamLayer(LayerCache):
    """The states of one layer, those of each step after those of the one before."""

    def __init__(
        self, states: Mapping[str, StateSpec], slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(states, 0, 0, dtype, device)
        self.buffers = {
            name: torch.empty((1, slots, *state.shape), dtype=state.dtype or dtype, device=device)
            for name, state in states.items()
        }

    def append(self, *, in_order: bool = True, **new: Float[Tensor, "r 1 ..."]) -> tuple[Tensor, ...]:
        """Store the new entries, and return all of all rows, `(1 m ...)`; which a query sees, the scope knows."""
        stored: list[Tensor] = []
        for name, entries in new.items():
            buffer, end = self.buffers[name], self.start + len(entries)
            buffer[0, self.start : end] = entries[:, 0]
            stored.append(buffer[:, :end])
        return tuple(stored)


class BeamCache(Cache):
    """The states of rows that beam search reorders and drops: nothing is moved but the numbers of where they lie.

    All rows have the same length, and take one token at a time.

    Attributes:
        reads: how many attentions of the last step read the cache by its kernel, as all of them must.
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, StateSpec]],
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__([], 0, 0, dtype=dtype, device=device)
        self.capacity = capacity
        self.layers = [_BeamLayer(states, rows * capacity, dtype, device) for states in layers]
        self.reads = 0
        self._tables = torch.zeros(rows, capacity, dtype=torch.int32, device=device)
        self._used = 0
        self._pass: tuple[Tensor, Tensor, Scope] | None = None

    def extend(self, tokens: Int[Tensor, "r 1"], valid: Bool[Tensor, "r 1"] | None = None) -> CacheStep:
        """Make room for one token of each row, and return what to run.

        Raises:
            ContextError: the cache was not made for that many tokens.
        """
        assert valid is None and tokens.shape == (len(self._tables), 1)
        self.reserve(1)
        rows = torch.arange(len(tokens), dtype=torch.int32, device=tokens.device)
        self._tables[:, self.length] = rows + self._used
        for layer in self.layers:
            layer.start = self._used
        position = torch.full((1, 1), self.length, device=tokens.device)
        self._used += len(tokens)
        self.length += 1
        self.reads = 0
        scope = Scope(position, causal=True, kernel=self.attend)
        self._pass = rows, torch.full_like(rows, self.length), scope
        return CacheStep(tokens, scope, self.layers)

    def reorder(self, rows: Int[Tensor, " r"]) -> None:
        """Let row i continue what was row `rows[i]`."""
        self._tables = self._tables[rows]

    def keep(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows, in this order; the memory of the others stays."""
        self.reorder(rows)

    def attend(
        self,
        q: Float[Tensor, "r 1 h d"],
        k: Float[Tensor, "1 m k d"],
        v: Float[Tensor, "1 m k e"],
        *,
        scale: float | None,
        narrow: Between | None,
        bias: Between | None,
    ) -> Float[Tensor, "r 1 h e"]:
        """Return the attention of each row's token to the row's own: the scope's kernel.

        Source: arXiv 1706.03762, Section 3.2.1.
        """
        assert self._pass is not None
        rows, seen, scope = self._pass
        self.reads += 1
        added = None
        if narrow is not None or bias is not None:
            added = scope.once(
                ("between", narrow, bias),
                lambda: scores_between(seen, self.length, narrow=narrow, bias=bias, dtype=q.dtype),
            )
        keys, values = (part[0].unsqueeze(1).contiguous() for part in (k, v))
        return attend_blocks(q[:, 0], keys, values, self._tables, rows, seen, scale=scale, bias=added).unsqueeze(1)
