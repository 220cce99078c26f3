"""One forward pass over the tokens of many texts, side by side in a single row, with keys and values in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core import Cache, LayerCache, Scope, StateSpec
from axon_core.interfaces import Between, CacheStep
from axon_core.nn import attend_blocks, scores_between
from axon_eet.blocks import SIZE

__all__ = ["NewTokens", "Packed", "PackedCache", "block_bytes"]

NewTokens = tuple[Sequence[int], int, Sequence[int]]
"""What a pass computes of one text: its new tokens, the first one's position, and the text's blocks."""


def block_bytes(layers: Sequence[Mapping[str, StateSpec]], dtype: torch.dtype) -> int:
    """Return the bytes of one block: of `SIZE` tokens' states in all layers."""
    states = [state for layer in layers for state in layer.values()]
    return SIZE * sum(torch.Size(state.shape).numel() * (state.dtype or dtype).itemsize for state in states)


@dataclass(frozen=True)
class Packed:
    """The tokens of one pass: those of one text after those of another, without padding."""

    tokens: Int[Tensor, "1 n"]
    """The tokens."""
    positions: Int[Tensor, "1 n"]
    """Each one's position in its own text."""
    slots: Int[Tensor, " n"]
    """Where its keys and values go: its block's number times `SIZE`, plus its place in the block."""
    tables: Int[Tensor, "r t"]
    """The blocks of each text."""
    owners: Int[Tensor, " n"]
    """The row of `tables` that each token reads."""
    seen: Int[Tensor, " n"]
    """How many keys each token sees: its position + 1."""

    def gathered(self) -> tuple[Int[Tensor, " u"], Int[Tensor, "r t"]]:
        """Return the blocks that `tables` names, and the tables as they are if only these were there."""
        used, tables = self.tables.unique(return_inverse=True)
        return used, tables.int()

    @classmethod
    def of(cls, texts: Sequence[NewTokens], device: torch.device | str) -> Packed:
        """Return the pass over these texts."""
        tokens, positions, slots, owners = list[int](), list[int](), list[int](), list[int]()
        for row, (new, start, blocks) in enumerate(texts):
            places = range(start, start + len(new))
            tokens += new
            positions += places
            slots += [blocks[place // SIZE] * SIZE + place % SIZE for place in places]
            owners += [row] * len(new)
        longest = max(len(blocks) for _, _, blocks in texts)
        tables = [[*(max(block, 0) for block in blocks), *[0] * (longest - len(blocks))] for _, _, blocks in texts]
        made = {"tokens": [tokens], "positions": [positions], "slots": slots, "tables": tables, "owners": owners}
        narrow = {"tables", "owners"}
        tensors = {
            name: torch.tensor(numbers, dtype=torch.int32 if name in narrow else torch.long, device=device)
            for name, numbers in made.items()
        }
        return cls(**tensors, seen=(tensors["positions"][0] + 1).int())


class _BlockLayer(LayerCache):
    """The states of one layer in blocks, of which all texts have some."""

    def __init__(
        self, states: Mapping[str, StateSpec], blocks: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(states, 0, 0, dtype, device)
        self.buffers = {
            name: torch.zeros((blocks * SIZE, *state.shape), dtype=state.dtype or dtype, device=device)
            for name, state in states.items()
        }
        self.slots = torch.empty(0, dtype=torch.long, device=device)
        self.used: Int[Tensor, " u"] | None = None

    def append(self, *, in_order: bool = True, **new: Float[Tensor, "1 n ..."]) -> tuple[Tensor, ...]:
        """Store the new entries, and return all blocks, or a copy of those `used`; what a query sees, the scope knows.

        An attention that computes something else of the entries gets a copy: computed of all blocks, it would take as
        much memory again.
        """
        stored: list[Tensor] = []
        for name, entries in new.items():
            buffer = self.buffers[name]
            buffer.index_copy_(0, self.slots, entries[0].to(buffer.dtype))
            if self.used is not None:
                buffer = buffer.view(-1, SIZE, *buffer.shape[1:])[self.used].flatten(0, 1)
            stored.append(buffer.unsqueeze(0))
        return tuple(stored)


class PackedCache(Cache):
    """The states of all texts, in blocks. `extend` runs the pass that `load` has set.

    With `gathers`, attentions get copies of the blocks in use; without, the blocks themselves.
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, StateSpec]],
        blocks: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        gathers: bool = False,
    ) -> None:
        super().__init__([], 0, 0, dtype=dtype, device=device)
        self.blocks = [_BlockLayer(states, blocks, dtype, device) for states in layers]
        self.layers: list[LayerCache] = [*self.blocks]
        self.gathers, self.device = gathers, device
        self._pass: Packed | None = None
        self._scope: Scope | None = None
        self._tables = torch.empty(0, 0, dtype=torch.int32, device=device)

    def load(self, packed: Packed) -> None:
        """Set the pass that the next `extend` returns."""
        self._pass = packed

    def extend(self, tokens: Int[Tensor, "1 n"], valid: Bool[Tensor, "1 n"] | None = None) -> CacheStep:
        """Return what to run for the pass that was loaded."""
        packed = self._pass
        assert packed is not None and valid is None
        used, self._tables = packed.gathered() if self.gathers else (None, packed.tables)
        for layer in self.blocks:
            layer.slots, layer.used = packed.slots, used
        self._scope = Scope(packed.positions, causal=True, kernel=self.attend)
        return CacheStep(tokens, self._scope, self.layers)

    def clear(self, blocks: Sequence[int]) -> None:
        """Write zeros into blocks: after a failure they may hold numbers that are not finite."""
        for layer in self.blocks:
            for buffer in layer.buffers.values():
                buffer.view(-1, SIZE, *buffer.shape[1:])[list(blocks)] = 0

    def attend(
        self,
        q: Float[Tensor, "1 n h d"],
        k: Float[Tensor, "1 m k d"],
        v: Float[Tensor, "1 m k e"],
        *,
        scale: float | None,
        narrow: Between | None,
        bias: Between | None,
    ) -> Float[Tensor, "1 n h e"]:
        """Return the attention of the pass over blocks: the scope's kernel (arXiv 1706.03762, Section 3.2.1)."""
        packed, scope = self._pass, self._scope
        assert packed is not None and scope is not None
        keys, values = (part[0].unflatten(0, (-1, SIZE)).contiguous() for part in (k, v))
        added = None
        if narrow is not None or bias is not None:
            m = SIZE * self._tables.shape[1]
            added = scope.once(
                ("between", narrow, bias),
                lambda: scores_between(packed.seen, m, narrow=narrow, bias=bias, dtype=q.dtype),
            )
        given = self._tables, packed.owners, packed.seen
        return attend_blocks(q[0], keys, values, *given, scale=scale, bias=added).unsqueeze(0)
