"""How texts are computed: all in one pass with their states in blocks, or each by itself in a cache of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import CausalLM, ContextError, StateSpec
from axon_eet.blocks import GONE, SIZE, Blocks, Prefix, blocks_for
from axon_eet.packed import PackedCache
from axon_eet.passes import Pass
from axon_eet.schedule import Load, plan_step
from axon_eet.text import RunningText

__all__ = ["BlockRunner", "CacheRunner", "EngineMemory", "Limits", "Runner", "Work", "state_bytes"]


class Limits(NamedTuple):
    """How much is computed in one step."""

    rows: int
    """Texts that run at once."""
    chunk: int
    """Tokens of prompts in a step in which texts grow."""
    alone: int
    """Tokens of prompts in a step in which none does."""


class EngineMemory(NamedTuple):
    """The memory for what the model keeps between tokens."""

    total: int
    """Bytes there are."""
    used: int
    """Bytes that running texts hold."""
    kept: int
    """Bytes kept for texts that begin like earlier ones."""


class Work(NamedTuple):
    """What a step computes of one text."""

    text: RunningText
    """The text."""
    n: int
    """How many of its pending tokens."""
    scored: int
    """After how many of these, the last ones, the scores of the next token are wanted."""


class Runner(Protocol):
    """Computes texts, and owns the memory for it."""

    preempted: int
    """How often a text gave its memory back to another."""
    cached: int
    """How many tokens of prompts were found in memory."""

    def check(self, prompt: int, new: int) -> None:
        """Raise `ContextError` if a text of that many tokens does not fit into all the memory."""
        ...

    def schedule(self, texts: Sequence[RunningText]) -> list[Work]:
        """Return the work of the next step for `texts`, which stand in their order."""
        ...

    def run(self, work: Sequence[Work]) -> list[Float[Tensor, "s v"]]:
        """Compute it, and return the scores that are wanted of each text."""
        ...

    def release(self, text: RunningText, *, failed: bool = False) -> None:
        """Give the memory of a text back; it may have been in a step that `failed`."""
        ...

    @property
    def memory(self) -> EngineMemory:
        """How the memory is used."""
        ...


def _scored(text: RunningText, n: int) -> int:
    """After how many of the next n tokens scores are wanted."""
    left = text.pending - n
    if text.answer.question.echo and text.choice == 0 and len(text.answer.prompt) < text.prompt:
        return n
    return int(left == 0)


@dataclass
class BlockRunner:
    """Computes all texts in one pass. Their keys and values are stored in blocks, which texts that begin alike share.

    Args:
        context: how many tokens the model sees.
        scores: runs the model.
        cache: the blocks' memory.
        blocks: which of them are free.
        block_bytes: the bytes of one.
        limits: how much is computed in one step.
        window: how many tokens back any attention sees, if all of them are so limited.
    """

    context: int
    scores: Pass
    cache: PackedCache
    blocks: Blocks
    block_bytes: int
    limits: Limits
    window: int | None
    preempted: int = 0
    cached: int = 0

    def check(self, prompt: int, new: int) -> None:
        """Raise `ContextError` if a text of that many tokens does not fit into all blocks."""
        tokens = min(prompt + new - 1, self.context)  # the last one is never read
        if self.window is not None:
            tokens = min(tokens, self.window + self.limits.alone + SIZE)
        if blocks_for(tokens) > self.blocks.total:
            raise ContextError(
                f"a text of {tokens} tokens needs {blocks_for(tokens) * self.block_bytes:,} bytes, but the engine's "
                f"memory is {self.blocks.total * self.block_bytes:,}; ask for fewer tokens, or give the engine more"
            )

    def schedule(self, texts: Sequence[RunningText]) -> list[Work]:
        """Return the next step's work, after giving texts the blocks they share and taking those of others."""
        for text in texts[: self.limits.rows]:
            if len(text.tokens) - text.first > self.context:  # as `Decoder` continues it
                self.release(text)
                text.first = len(text.tokens) - (self.context + 1) // 2
            self._adopt(text)
        loads = [self._load(text) for text in texts]
        rows, chunk, alone = self.limits
        found = plan_step(loads, rows=rows, chunk=chunk, alone=alone, uses=self.blocks.uses, free=self.blocks.available)
        for i in found.preempted:
            self.release(texts[i])
        self.preempted += len(found.preempted)
        chosen = [(text, n) for text, n in zip(texts, found.counts, strict=True) if n]
        for text, n in chosen:
            self.blocks.take(text.table, text.computed + n)
        return [Work(text, n, _scored(text, n)) for text, n in chosen]

    def run(self, work: Sequence[Work]) -> list[Float[Tensor, "s v"]]:
        """Compute it in one pass, and return the scores that are wanted of each text."""
        ends = accumulate(n for _, n, _ in work)
        wanted = [place for (_, _, scored), end in zip(work, ends, strict=True) for place in range(end - scored, end)]
        found = self.scores([(text.next_tokens(n), text.computed, text.table.blocks) for text, n, _ in work], wanted)
        for text, n, _ in work:
            text.computed += n
            text.reached = max(text.reached, text.computed)
            self._fill(text)
        return list(found.split([scored for _, _, scored in work]))

    def release(self, text: RunningText, *, failed: bool = False) -> None:
        """Give the blocks of a text back; those of a failed step are cleared."""
        if failed:
            self.cache.clear(self.blocks.forget(text.table))
        else:
            self.blocks.release(text.table)
        text.computed = 0

    @property
    def memory(self) -> EngineMemory:
        """How the blocks are used."""
        total, available, kept = self.blocks.total, self.blocks.available, self.blocks.kept
        return EngineMemory(*(n * self.block_bytes for n in (total, total - available, kept)))

    def _load(self, text: RunningText) -> Load:
        table, reserve = text.table, text.pending
        if self.window is not None:
            reserve = min(reserve, self.limits.alone)
        return Load(text.computed, text.pending, reserve, len(table.blocks), table.held(), self._filling(text))

    def _filling(self, text: RunningText) -> Prefix | None:
        """What the text's first block that is not full will hold; None if its tokens do not fill it."""
        start = text.first + SIZE * text.table.full
        tokens = text.tokens[start : start + SIZE]
        return (text.table.prefix, tuple(tokens)) if len(tokens) == SIZE else None

    def _adopt(self, text: RunningText) -> None:
        """Give the text the blocks that hold its next tokens already; its last token is always computed."""
        if text.answer.question.echo and text.choice == 0 and len(text.answer.prompt) < text.prompt:
            return
        while text.computed == SIZE * text.table.full and text.pending > SIZE:
            prefix = self._filling(text)
            if prefix is None or not self.blocks.find(prefix):
                return
            self.blocks.adopt(text.table, prefix)
            text.computed += SIZE
            if text.computed > text.reached and text.choice == 0 and text.computed <= text.prompt:
                text.answer.usage.cached_tokens += SIZE
                self.cached += SIZE
            text.reached = max(text.reached, text.computed)

    def _fill(self, text: RunningText) -> None:
        table = text.table
        while (table.full + 1) * SIZE <= text.computed:
            start = text.first + SIZE * table.full
            self.blocks.fill(table, text.tokens[start : start + SIZE])
        if self.window is not None:
            unseen = max(0, text.computed + 1 - self.window) // SIZE
            if unseen and table.blocks[unseen - 1] != GONE:
                self.blocks.release(table, unseen)


_PIECE = 64  # tokens of a prompt that a cache takes at a time: fixed, so that results do not depend on the limits


@dataclass
class CacheRunner:
    """Computes each text by itself, in a cache that the model makes for it and that lasts until the text ends.

    It serves every model: recurrent states, and rotary embeddings that rewrite the past, as the decoder of one request
    does. Texts take turns, and a text starts when there is memory for all of it.
    """

    model: CausalLM
    layers: Sequence[Mapping[str, StateSpec]]
    dtype: torch.dtype
    horizon: int | None
    total: int
    limits: Limits
    preempted: int = 0
    cached: int = 0
    used: int = 0

    def check(self, prompt: int, new: int) -> None:
        """Raise `ContextError` if the cache of a text of that many tokens does not fit into the memory."""
        needed = self._bytes(self._capacity(prompt, new))
        if needed > self.total:
            raise ContextError(
                f"a text of {prompt} tokens and up to {new} new ones needs {needed:,} bytes, but the engine's memory "
                f"is {self.total:,}; ask for fewer tokens, or give the engine more"
            )

    def schedule(self, texts: Sequence[RunningText]) -> list[Work]:
        """Return the next token of each text that grows, and the next piece of one prompt."""
        work: list[Work] = []
        prompts, full = 0, False
        for text in texts:
            if len(text.tokens) - text.first > self.model.context:
                self.release(text)
                text.first = len(text.tokens) - (self.model.context + 1) // 2
            if text.cache is None:
                full = full or not self._start(text)
                if full:  # those after it do not start either, or they would overtake it for ever
                    continue
            assert text.cache is not None
            n = text.pending
            if n > 1:
                if prompts:
                    continue
                prompts += 1
                n = n if text.cache.horizon is not None else min(n, _PIECE)
            work.append(Work(text, n, _scored(text, n)))
            if len(work) == self.limits.rows:
                break
        return work

    def run(self, work: Sequence[Work]) -> list[Float[Tensor, "s v"]]:
        """Compute each text's part by itself, and return the scores that are wanted."""
        found: list[Tensor] = []
        for text, n, scored in work:
            assert text.cache is not None
            tokens = torch.tensor([text.next_tokens(n)], device=text.cache.positions.device)
            features = self.model.features(tokens, cache=text.cache)
            text.computed += n
            found.append(self.model.logits(features[:, n - scored :])[0] if scored else features.new_empty(0, 1))
        return found

    def release(self, text: RunningText, *, failed: bool = False) -> None:
        """Give the cache of a text back."""
        if text.cache is not None:
            self.used -= text.cache.nbytes
        text.cache, text.computed = None, 0

    @property
    def memory(self) -> EngineMemory:
        """How much memory the caches take."""
        return EngineMemory(self.total, self.used, 0)

    def _start(self, text: RunningText) -> bool:
        """Give the text a cache for all it will hold, and return whether there is memory for it."""
        new = text.prompt + text.answer.question.max_new_tokens - len(text.tokens)
        capacity = self._capacity(text.pending, new)
        if self.used + self._bytes(capacity) > self.total:
            return False
        text.cache = self.model.new_cache(1, capacity)
        self.used += text.cache.nbytes
        return True

    def _capacity(self, known: int, new: int) -> int:
        return known + min(new, max(0, self.model.context - known))

    def _bytes(self, capacity: int) -> int:
        held = capacity if self.horizon is None else min(capacity, self.horizon)
        return state_bytes(self.layers, held, self.dtype)


def state_bytes(layers: Sequence[Mapping[str, StateSpec]], tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of a `Cache` of one row with room for that many tokens."""
    total = 0
    for state in (state for states in layers for state in states.values()):
        window = tokens if state.window is None else min(tokens, state.window - 1)
        entries = window if state.per_token else 1
        total += entries * torch.Size(state.shape).numel() * (state.dtype or dtype).itemsize
    return total
