"""Blocks of key/value memory: which are free, who holds which, and which hold the beginning of a text to come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

__all__ = ["GONE", "SIZE", "BlockTable", "Blocks", "Prefix", "blocks_for"]

SIZE = 16
"""Tokens of a block."""

GONE = -1
"""In a table, in place of a block that was given back before the others."""

Prefix = tuple[int, tuple[int, ...]]
"""What a full block holds: the number of the prefix before it (0 for none), and its tokens.

A prefix gets its number when its last block is filled, and no number is given twice. Two blocks thus hold the same
exactly if these are equal; nothing depends on a hash.
"""


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold that many tokens.

    >>> blocks_for(16), blocks_for(17)
    (1, 2)
    """
    return -(-tokens // SIZE)


@dataclass
class BlockTable:
    """The blocks of one text, in its order."""

    blocks: list[int] = field(default_factory=list[int])
    """Their numbers; `GONE` for one that was given back because no token sees it any more."""
    prefix: int = 0
    """The number of the prefix that its full blocks hold."""
    full: int = 0
    """How many of them are full and part of `prefix`."""

    def held(self) -> list[int]:
        """Return the blocks that it still holds."""
        return [block for block in self.blocks if block != GONE]


class Blocks:
    """A fixed number of blocks, each held by any number of tables, or free, or kept for the prefix it holds.

    A full block may be shared by all texts that begin alike: it is never written again. When nobody holds it, it is
    kept until its memory is needed: the least recently used goes first, and of one text the last block before the
    first.
    """

    def __init__(self, n: int) -> None:
        self.total = n
        """How many blocks there are."""
        self.uses = [0] * n
        """How many tables hold each block."""
        self._free = list(range(n - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, the least recently used first
        self._holding: dict[Prefix, tuple[int, int]] = {}  # the block that holds a prefix, and the prefix's number
        self._held: dict[int, Prefix] = {}  # what each of those blocks holds
        self._numbers = count(1)

    @property
    def available(self) -> int:
        """How many blocks can be had: free ones, and those kept for their prefix alone."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """How many blocks nobody holds, and are kept for their prefix."""
        return len(self._kept)

    def take(self, table: BlockTable, tokens: int) -> None:
        """Add free blocks to `table` until it has room for `tokens` tokens; there must be enough (`available`)."""
        while len(table.blocks) < blocks_for(tokens):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                del self._holding[self._held.pop(block)]
            self.uses[block] = 1
            table.blocks.append(block)

    def find(self, prefix: Prefix) -> bool:
        """Whether some block holds this."""
        return prefix in self._holding

    def adopt(self, table: BlockTable, prefix: Prefix) -> None:
        """Add the block that holds `prefix` (`find`) to `table`, all of whose blocks are full."""
        block, number = self._holding[prefix]
        self._kept.pop(block, None)
        self.uses[block] += 1
        table.blocks.append(block)
        table.prefix, table.full = number, table.full + 1

    def fill(self, table: BlockTable, tokens: Sequence[int]) -> None:
        """Note that the first block of `table` that was not full holds these tokens now, and can be shared."""
        prefix, block = (table.prefix, tuple(tokens)), table.blocks[table.full]
        if prefix not in self._holding:
            self._holding[prefix] = block, next(self._numbers)
            self._held[block] = prefix
        table.prefix, table.full = self._holding[prefix][1], table.full + 1  # another's number if that was first

    def release(self, table: BlockTable, before: int | None = None) -> None:
        """Give back the blocks of `table`, or the first `before` alone, which leave `GONE` in their places."""
        for block in reversed(table.blocks[:before]):
            if block != GONE:
                self.uses[block] -= 1
                if not self.uses[block]:
                    self._let_go(block)
        if before is None:
            table.blocks, table.prefix, table.full = [], 0, 0
        else:
            table.blocks[:before] = [GONE] * min(before, len(table.blocks))

    def forget(self, table: BlockTable) -> list[int]:
        """Give back the blocks of `table`, keep none for its prefix, and return those that nobody holds now."""
        held = table.held()
        self.release(table)
        alone = [block for block in held if not self.uses[block]]
        for block in alone:
            if block in self._held:
                del self._kept[block], self._holding[self._held.pop(block)]
                self._free.append(block)
        return alone

    def _let_go(self, block: int) -> None:
        if block in self._held:
            self._kept[block] = None
        else:
            self._free.append(block)
