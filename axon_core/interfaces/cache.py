"""Decoding state: what the layers keep between tokens, allocated outside the modules.

All rows of a batch use the same slot for the same step; shorter rows are padded before their first token, nowhere
else, and the positions count valid tokens only, so that a row's numbers do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core.errors import ContextError, UsageError
from axon_core.interfaces.scope import Scope


@dataclass(frozen=True)
class StateSpec:
    """One tensor an attention keeps while decoding."""

    shape: tuple[int, ...]
    """Shape for one token of one row, or, if `per_token` is False, for one row as a whole."""
    per_token: bool = True
    """Whether there is one entry per token, or a single state that every token updates."""
    dtype: torch.dtype | None = None
    """None means the model's own dtype; a recurrent state usually needs float32."""
    window: int | None = None
    """How many tokens a query reaches back, its own included; only that many are kept."""
    any_order: bool = False
    """Whether the attention takes a window's tokens in any order, with the positions that `LayerCache.reach` gives."""


class LayerCache:
    """The state of one layer. An attention appends to it (`append`), or reads and replaces whole states (`[name]`)."""

    def __init__(
        self, states: Mapping[str, StateSpec], batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.states = dict(states)
        self.start = 0
        self._memory: tuple[Tensor, ...] | None = None
        self.buffers = {
            name: torch.zeros(
                (batch, *_slots(state, capacity), *state.shape), dtype=state.dtype or dtype, device=device
            )
            for name, state in self.states.items()
        }

    def append(self, *, in_order: bool = True, **new: Float[Tensor, "b n ..."]) -> tuple[Tensor, ...]:
        """Add per-token entries and return, in the order given, everything a query may reach: `(b m ...)`.

        Args:
            in_order: whether the tokens come in their order. A state with a window writes over its oldest token, so
                that a copy is needed for that; an attention that masks nothing, as for a single token without
                padding, does without.
            new: the entries of each state.
        """
        return tuple(self._append(name, entries, in_order) for name, entries in new.items())

    def reach(self, scope: Scope, name: str) -> Scope:
        """Return the scope in which the queries see what `append` has returned of a state that is in `any_order`."""
        return scope

    def once(self, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what `make` returned the first time, contiguous: what cross-attention computes from a fixed memory."""
        if self._memory is None:
            self._memory = tuple(part.contiguous() for part in make())
        return self._memory

    def reset(self) -> None:
        """Forget everything, keeping the memory of the states."""
        self._memory = None
        for buffer in self.buffers.values():
            buffer.zero_()

    def keep(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows, in this order, and free the memory of the others."""
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        if self._memory is not None:
            self._memory = tuple(part[rows] for part in self._memory)

    def __getitem__(self, name: str) -> Tensor:
        return self.buffers[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.buffers[name].copy_(value)

    def _append(self, name: str, new: Tensor, in_order: bool) -> Tensor:
        buffer, n, window = self.buffers[name], new.shape[1], self.states[name].window
        if window is None:
            buffer[:, self.start : self.start + n] = new
            return buffer[:, : self.start + n]
        size = buffer.shape[1]  # token t lies in slot t modulo this
        if n == 1 and not (in_order and self.start >= size):
            slot = torch.arange(self.start, self.start + 1, device=new.device) % size  # a compiled slot is no constant
            buffer.index_copy_(1, slot, new.to(buffer.dtype))
            return buffer[:, : self.start + 1]
        first = self.start % size if self.start > size else 0
        before = torch.cat((buffer[:, first:], buffer[:, :first]), 1)[:, : self.start]
        before = before[:, before.shape[1] - min(before.shape[1], window - 1) :]
        kept = torch.arange(max(self.start, self.start + n - size), self.start + n, device=new.device)
        buffer[:, kept % size] = new[:, n - len(kept) :].to(buffer.dtype)
        return torch.cat((before, new.to(buffer.dtype)), 1)


class StaticLayerCache(LayerCache):
    """The state of one layer of a `StaticCache`: one token goes to slot `slot`, and `visible` slots are read.

    Of a state with a window, these are counted modulo its size.
    """

    def __init__(self, layer: LayerCache, slot: Int[Tensor, " 1"]) -> None:
        self.states, self.buffers, self._memory, self.start = layer.states, layer.buffers, layer._memory, layer.start
        self.slot, self.visible = slot, 0

    def _append(self, name: str, new: Tensor, in_order: bool) -> Tensor:
        buffer = self.buffers[name]
        return buffer.index_copy_(1, self.slot % buffer.shape[1], new.to(buffer.dtype))[:, : self._read(name)]

    def reach(self, scope: Scope, name: str) -> Scope:
        """Return the scope in which the queries see what `append` has returned of a state that is in `any_order`."""
        size, read = self.buffers[name].shape[1], self._read(name)
        return scope.once(("ring", size), lambda: self._ring(scope, size, read))

    def _read(self, name: str) -> int:
        # `min` would compile the steps before the window is full and those after it separately.
        return cast(int, torch.sym_min(self.visible, self.buffers[name].shape[1]))

    def _ring(self, scope: Scope, size: int, read: int) -> Scope:
        held = self.slot - (self.slot - torch.arange(read, device=self.slot.device)) % size  # the token in each slot
        keys = scope.keys[:, held.clamp(min=0)].masked_fill(held < 0, -1)
        return Scope(scope.positions, keys, causal=True, padded=True)


class CacheStep(NamedTuple):
    """What a model has to run for the tokens just added to a cache."""

    tokens: Int[Tensor, "b n"]
    scope: Scope
    layers: Sequence[LayerCache | None]


class Cache:
    """The decoding state of a whole model: one `LayerCache` a layer, and the positions of all slots.

    `horizon` is the sequence length up to which cached entries stay valid (`RotaryEmbedding.constant_until`). Beyond
    it, the cache keeps only the tokens, and `extend` returns all of them to be run again, so that decoding gives
    exactly the result of one pass over the whole sequence.
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, StateSpec]],
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        horizon: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.horizon = horizon
        self.length = 0
        held = capacity if horizon is None else min(capacity, horizon)
        self.layers = [LayerCache(states, batch, held, dtype, device) for states in layers]
        self.positions = torch.full((batch, capacity), -1, dtype=torch.long, device=device)
        self.tokens = None if horizon is None else torch.zeros_like(self.positions)
        self._next = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._padded = False

    def make_static(self, block: int) -> Cache:
        """Return a `StaticCache` of the same memory, to be used instead of this one from now on.

        A cache with a horizon, a window that must be kept in order or a state that is not per token cannot be static:
        it returns itself.

        Args:
            block: how many more slots become visible when the visible ones are full (`StaticCache.reserve`).
        """
        states = [state for layer in self.layers for state in layer.states.values()]
        if self.horizon is None and all(s.per_token and (s.window is None or s.any_order) for s in states):
            return StaticCache(self, block)
        return self

    def reserve(self, n: int) -> None:
        """Ensure that there is room for `n` more tokens.

        Raises:
            ContextError: the cache was not made for that many.
        """
        if self.length + n > self.capacity:
            raise ContextError(
                f"the cache has room for {self.capacity} tokens, got {self.length} + {n}; enlarge it or "
                "shorten the text"
            )

    def extend(self, tokens: Int[Tensor, "b n"], valid: Bool[Tensor, "b n"] | None = None) -> CacheStep:
        """Make room for `tokens` (`valid` is False for padding, on the left) and return what to run.

        Raises:
            ContextError: more tokens than the cache was made for.
            UsageError: padding after a row's first token.
        """
        start, n = self.length, tokens.shape[1]
        steps = torch.arange(n, device=tokens.device) if valid is None else valid.cumsum(1) - 1
        positions = self._next + steps
        if valid is not None:
            _refuse_padding_inside(positions, valid)
        self.reserve(n)
        self.length += n
        if valid is not None:
            self._padded = True
            positions = positions.masked_fill(~valid, -1)
            self._next = self._next + valid.sum(1, keepdim=True)
        else:
            self._next = self._next + n
        self.positions[:, start : start + n] = positions
        if self.tokens is not None:
            self.tokens[:, start : start + n] = tokens
        if self.horizon is not None and self.length > self.horizon:
            assert self.tokens is not None
            every = self.positions[:, : self.length]
            scope = Scope(every, causal=True, padded=self._padded)
            return CacheStep(self.tokens[:, : self.length], scope, [None] * len(self.layers))
        for layer in self.layers:
            layer.start = start
        scope = Scope(positions, self.positions[:, : start + n], causal=True, padded=self._padded)
        return CacheStep(tokens, scope, self.layers)

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        self.length, self._padded = 0, False
        self.positions.fill_(-1)
        self._next.zero_()
        for layer in self.layers:
            layer.reset()

    def reorder(self, rows: Int[Tensor, " b"]) -> None:
        """Replace row i of everything by row `rows[i]`, as beam search does."""
        tensors = [self.positions, self._next, *([] if self.tokens is None else [self.tokens])]
        for layer in self.layers:
            for name, buffer in layer.buffers.items():  # of the slots, only those in use
                tensors.append(buffer[:, : self.length] if layer.states[name].per_token else buffer)
        for tensor in tensors:
            tensor.copy_(tensor[rows])

    def keep(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows, in this order, free the others' memory, and drop slots that are now all padding.

        A single row that was padded on the left then has no padding.
        """
        self.positions, self._next = self.positions[rows], self._next[rows]
        if self.tokens is not None:
            self.tokens = self.tokens[rows]
        for layer in self.layers:
            layer.keep(rows)
        if self._padded and (self.horizon is None or self.length <= self.horizon):  # past it the layers hold too little
            real = self.positions[:, : self.length] >= 0
            first = int(real.any(0).int().argmax())
            self._padded = not bool(real[:, first:].all())
            self._close_up(first)

    def _close_up(self, first: int) -> None:
        """Make slot `first` the first one; those before it are padding in all rows."""
        self.positions = self.positions.roll(-first, 1)
        if self.tokens is not None:
            self.tokens = self.tokens.roll(-first, 1)
        for layer in self.layers:
            for name, buffer in layer.buffers.items():
                if layer.states[name].per_token:  # with a window, slots are counted modulo its size
                    layer.buffers[name] = buffer.roll(-first, 1)
        self.length -= first

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' states."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers.values())


class StaticCache(Cache):
    """A cache that keeps everything that changes from token to token in tensors at fixed addresses.

    It takes one token a row at a time. `extend` returns the `visible` slots; those not yet filled have the position of
    padding. Each token thus runs the same operations on the same memory, so that a step can be replayed. Only
    `visible` grows, a block at a time.
    """

    def __init__(self, grown: Cache, block: int) -> None:
        """Take over the memory of `grown` (`Cache.make_static`).

        Args:
            grown: a cache without a horizon, whose states are all per token, and those with a window in any order.
            block: how many more slots become visible when the visible ones are full: larger blocks mean fewer
                captures; smaller ones, fewer unused slots read.
        """
        self.capacity, self.horizon, self.length, self.tokens = grown.capacity, None, grown.length, None
        self.positions, self._next, self._padded = grown.positions, grown._next, grown._padded
        self._block = block
        self.layers = grown.layers
        self._restart()

    @property
    def slot(self) -> Int[Tensor, " 1"]:
        """The slot of the next token: a tensor updated in place; `keep`, which moves the memory, replaces it."""
        return self._slot

    @property
    def visible(self) -> int:
        """How many slots are returned, including those not yet filled; 0 before the first `reserve`."""
        return self._visible

    def reserve(self, n: int) -> None:
        """Make enough slots visible for `n` more tokens.

        Raises:
            ContextError: the cache was not made for that many.
        """
        super().reserve(n)
        if self.length + n > self._visible:
            self._visible = min(self.capacity, -(-(self.length + n) // self._block) * self._block)

    def extend(self, tokens: Int[Tensor, "b 1"], valid: Bool[Tensor, "b 1"] | None = None) -> CacheStep:
        """Make room for one token a row, and return what to run.

        Raises:
            ContextError: more tokens than the cache was made for.
            UsageError: more than one token a row, or padding.
        """
        if tokens.shape[1] > 1 or valid is not None:
            raise UsageError(f"a static cache takes one token per row and no padding, got {tokens.shape[1]}")
        self.reserve(1)
        slot, positions = self._slot.clone(), self._next.clone()
        self.length += 1
        self._slot.add_(1)
        self._next.add_(1)
        self.positions.index_copy_(1, slot, positions)
        for layer in self._layers:
            layer.slot, layer.visible = slot, self._visible
        scope = Scope(positions, self.positions[:, : self._visible], causal=True, padded=True)
        return CacheStep(tokens, scope, self.layers)

    def reset(self) -> None:
        """Forget everything, keeping the memory; the cache stays static."""
        super().reset()
        self._slot.zero_()
        self._visible = 0

    def keep(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows, as `Cache.keep` does; steps captured before are no longer valid."""
        super().keep(rows)
        self._restart()

    def _restart(self) -> None:
        self._slot, self._visible = torch.tensor([self.length], device=self.positions.device), 0
        self._layers = [StaticLayerCache(layer, self._slot) for layer in self.layers]
        self.layers: list[LayerCache] = [*self._layers]


def _refuse_padding_inside(positions: Int[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> None:
    """Refuse padding whose positions continue from a token: a window or a recurrent state would take it for one."""
    inside = ~valid & (positions >= 0)
    if inside.any():
        row, column = (int(i) for i in inside.nonzero()[0])
        raise UsageError(
            f"a cache takes padding only before a row's first token, but token {column} of row {row} is padding after "
            "it; pad the rows on the left"
        )


def _slots(state: StateSpec, capacity: int) -> tuple[int, ...]:
    """The slot axis of a state's buffer: none, all tokens, or those in its window."""
    if not state.per_token:
        return ()
    return (capacity if state.window is None else min(capacity, state.window),)
