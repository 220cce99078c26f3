"""What the next step computes: a pure function of what waits, and of the memory that is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from axon_eet.blocks import Prefix, blocks_for

__all__ = ["Load", "StepPlan", "plan_step"]

_FEW = 2
"""Prompts that leave the texts that grow more of a step."""


class Load(NamedTuple):
    """A text, as the schedule sees it."""

    computed: int
    """Tokens whose keys and values are stored."""
    pending: int
    """Tokens after those: 1 for a text that grows, more for a prompt, or for a text that gave its memory back."""
    reserve: int
    """Those of them for which there must be room before any is computed, so that a prompt is not begun in vain."""
    length: int
    """Blocks of its table, including those it no longer holds."""
    held: Sequence[int]
    """The blocks it holds."""
    filling: Prefix | None
    """What its next block will hold when it is full; None if its tokens do not fill it."""


class StepPlan(NamedTuple):
    """The work of one step."""

    counts: list[int]
    """How many pending tokens of each text are computed."""
    preempted: list[int]
    """Texts that give all their blocks back first: they are computed again later."""


def plan_step(loads: Sequence[Load], *, rows: int, chunk: int, alone: int, uses: Sequence[int], free: int) -> StepPlan:
    """Return what to compute next for `loads`, which stand in the order of their precedence.

    The first `rows` texts run. Each that grows gets its token; prompts get up to `chunk` tokens in all, half of them
    while they are one or two, so that texts keep their pace, or `alone` where no text grows. If blocks run out, the
    text that stands last gives its up, as often as needed, but never for one that stands after it. So the first text
    always advances, and every text ends. A text whose next block another one is computing in this step waits and then
    shares it.

    Args:
        loads: all texts that have not ended.
        rows: how many may run at once.
        chunk: the most tokens of prompts in a step, if texts grow beside them; half as many for one or two prompts.
        alone: the same if none does.
        uses: how many texts hold each block.
        free: how many blocks nobody holds.
    """
    running = loads[:rows]
    uses, counts, preempted = list(uses), [0] * len(loads), list[int]()
    left = alone
    if any(load.pending == 1 for load in running):
        left = chunk if sum(load.pending > 1 for load in running) > _FEW else -(-chunk // 2)
    computing = set[Prefix]()
    last = len(loads)  # texts from here on have been preempted
    for i, load in enumerate(running):
        if i >= last or load.filling in computing:
            continue
        n = 1 if load.pending == 1 else min(load.pending, left)
        if not n:
            continue
        needed = blocks_for(load.computed + load.reserve) - load.length
        while needed > free and last > i + 1:
            last -= 1
            if loads[last].held:
                preempted.append(last)
                free += _give_back(loads[last].held, uses)
        if needed > free:
            continue
        counts[i] = n
        free -= max(0, blocks_for(load.computed + n) - load.length)
        left -= n * (load.pending > 1)
        if load.filling is not None:
            computing.add(load.filling)
    return StepPlan(counts, preempted)


def _give_back(blocks: Sequence[int], uses: list[int]) -> int:
    """Take one use from each of `blocks`, and return how many are left without any."""
    for block in blocks:
        uses[block] -= 1
    return sum(uses[block] == 0 for block in blocks)
