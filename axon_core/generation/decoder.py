"""Tokens in, tokens out: rows of a batch that a model continues side by side, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from axon_core.errors import CheckpointError, ContextError, UsageError
from axon_core.generation.capture import WAYS, replayed
from axon_core.generation.compile import compiled, scores, step
from axon_core.generation.sampling import Sampling, sample_tokens
from axon_core.interfaces.cache import Cache
from axon_core.interfaces.model import CausalLM
from axon_core.randomness import Key

__all__ = ["Decoder", "Token", "check_prompt", "evaluation_mode", "pad_left"]

_CHUNK = 512  # tokens of the prompts that run at once


class Token(NamedTuple):
    """A token that was chosen for one row."""

    row: int
    """The row's number, counted from 0."""
    id: int
    """The token."""
    logprob: float
    """Its log-probability under the model as it is: before penalty, temperature and filters, in nats."""


@dataclass(eq=False)
class _Row:
    number: int
    tokens: list[int]
    limit: int
    sampling: Sampling
    first: int = 0  # where the part that the model sees begins

    @property
    def length(self) -> int:
        return len(self.tokens) - self.first


class Decoder:
    """Continues rows of tokens step by step.

    A row's tokens depend only on its prompt, seed, sampling and limit, not on the other rows, up to the rounding of
    matrix products, which may depend on the number of rows. A row that outgrows the model's context continues from its
    last half context. Finished rows leave the batch once they are half of it.

    Args:
        model: any causal language model.
        prompts: the tokens of each row.
        seeds: the seed of each row's random numbers.
        sampling: how each row's tokens are chosen.
        limits: the number of new tokens after which each row ends.
        vocab_size: how many tokens the tokenizer has. Rows of the model beyond it, by which the vocabulary was rounded
            up, are never drawn; by default all of them may be.
        compile: whether the steps after the prompt run compiled (`compiled`) and are replayed (`replayed`), on a CUDA
            device as graphs: slow to start, and much faster afterwards.

    Raises:
        UsageError: there is no prompt, one is empty, or it holds a number that is not a token of the model.
        ContextError: a prompt is longer than the model's context.
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sequence[Sampling],
        limits: Sequence[int],
        *,
        vocab_size: int | None = None,
        compile: bool = False,
    ) -> None:
        if not prompts:
            raise UsageError("there must be at least one prompt, got none")
        for i, prompt in enumerate(prompts):
            check_prompt(model, prompt, "the prompt" if len(prompts) == 1 else f"prompt {i + 1}")
        self._model, self._vocab_size = model, vocab_size
        self._run = compiled(model) if compile else step
        self._device = next(model.parameters()).device
        self._way = WAYS.get(self._device.type) if compile else None
        if self._way is not None:
            self._run = replayed(self._run, self._way.capture)
        given = zip(prompts, limits, sampling, strict=True)
        rows = [_Row(i, list(prompt), limit, how) for i, (prompt, limit, how) in enumerate(given)]
        self._going = [row for row in rows if row.limit > 0]
        self._batch: list[_Row] = []  # the rows that the cache holds, in its order
        self._groups: list[tuple[Sampling, Int[Tensor, " g"]]] = []
        self._cache: Cache | None = None
        self._step = 0
        numbers = torch.zeros(len(prompts), max(limits), dtype=torch.float32)
        for i, (seed, limit) in enumerate(zip(seeds, limits, strict=True)):
            numbers[i, :limit] = Key((seed, "sample")).uniform((limit,))
        self._uniform = numbers.to(self._device)
        self._seen: Bool[Tensor, "b v"] | None = None
        if any(how.repetition_penalty != 1 for how in sampling):
            self._seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=self._device)
            for row in rows:
                self._seen[row.number, row.tokens] = True

    @property
    def going(self) -> bool:
        """Whether any row continues."""
        return bool(self._going)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Return the next token of each row that continues.

        Raises:
            CheckpointError: the model's scores are not finite.
        """
        logits, total = self._scores()
        logits = logits[:, : self._vocab_size]
        uniform = self._uniform[self._numbers, self._step]
        seen = None if self._seen is None else self._seen[self._numbers, : self._vocab_size]
        if len(self._groups) == 1:
            chosen = sample_tokens(logits, self._groups[0][0], uniform, seen)
        else:
            chosen = torch.zeros_like(self._numbers)
            for how, at in self._groups:
                chosen[at] = sample_tokens(logits[at], how, uniform[at], None if seen is None else seen[at])
        if self._seen is not None:
            self._seen[self._numbers, chosen] = True
        self._last = chosen.unsqueeze(-1)
        logprobs = logits.gather(-1, self._last).squeeze(-1) - total
        tokens: dict[int, Token] = {}
        for row, token, logprob in zip(self._batch, chosen.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            tokens[row.number] = Token(row.number, token, logprob)
        for row in self._going:
            if not math.isfinite(tokens[row.number].logprob):
                raise CheckpointError(
                    f"the model's scores must be finite, but those of token {self._step + 1} of row {row.number + 1} "
                    f"are not (log-probability {tokens[row.number].logprob}): use another dtype if numbers "
                    "overflow, as in float16, or other weights if these are damaged"
                )
        self._step += 1
        given = [tokens[row.number] for row in self._going]
        self._going = [row for row in self._going if row.limit > self._step]
        return given

    def end(self, row: int) -> None:
        """End this row: it gets no more tokens."""
        self._going = [other for other in self._going if other.number != row]

    def _scores(self) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
        """Run the model on the tokens chosen last, or on whole rows if the cache cannot continue."""
        context = self._model.context
        full = [row for row in self._going if row.length > context]
        if self._cache is None or full:
            for row in full:
                row.first = len(row.tokens) - (context + 1) // 2
            return self._prefill(self._going)
        # A finished row may cost a little, but must never grow beyond the context.
        few = 2 * len(self._going) <= len(self._batch)
        if few or any(row.length > context for row in self._batch):
            staying = set(self._going)
            at = [i for i, row in enumerate(self._batch) if row in staying]
            kept = torch.tensor(at, device=self._device)
            self._cache.keep(kept)
            self._last = self._last[kept]
            self._take([self._batch[i] for i in at])
        # Past its horizon the cache runs whole rows, each time of a different length: nothing to compile.
        past = self._cache.horizon is not None and self._cache.length >= self._cache.horizon
        return (step if past else self._run)(self._model, self._last, self._cache)

    def _prefill(self, rows: list[_Row]) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
        """Run `rows` in one pass, padded on the left, into a new cache with room for the new tokens."""
        self._take(rows)
        tokens, valid = pad_left([row.tokens[row.first :] for row in rows])
        new = max(row.limit for row in rows) - self._step
        capacity = tokens.shape[1] + min(new, self._model.context - min(row.length for row in rows))
        if self._way is not None:  # never filled to the end, where the slots of several rows are adjacent: the
            capacity = -(-capacity // self._way.block) * self._way.block + 1  # compiler would treat that differently
        self._cache = None  # frees its memory before the new one is allocated
        self._cache = self._model.new_cache(len(rows), capacity)
        mask = None if bool(valid.all()) else valid.to(self._device)
        # What a chunk needs does not grow with the prompt. Past a horizon the cache would run all of it for each chunk.
        size = _CHUNK if self._cache.horizon is None else tokens.shape[1]
        chunks = tokens.to(self._device).split(size, 1)
        known = [None] * len(chunks) if mask is None else mask.split(size, 1)
        *earlier, (last, valid) = zip(chunks, known, strict=True)
        for chunk, real in earlier:  # for the cache alone
            self._model.features(chunk, valid=real, cache=self._cache)
        result = scores(self._model, self._model.features(last, valid=valid, cache=self._cache))
        if self._way is not None:
            self._cache = self._cache.make_static(self._way.block)
        return result

    def _take(self, rows: list[_Row]) -> None:
        """Make `rows` the batch, grouped by how their tokens are chosen."""
        self._batch = list(rows)
        self._numbers = torch.tensor([row.number for row in rows], device=self._device)
        groups: dict[Sampling, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.sampling, []).append(i)
        self._groups = [(how, torch.tensor(at, device=self._device)) for how, at in groups.items()]


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put the model into evaluation mode for the block, then restore the mode of each module."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_prompt(model: CausalLM, prompt: Sequence[int], name: str = "the prompt") -> None:
    """Raise `UsageError` or `ContextError` if the model cannot continue these tokens."""
    if not prompt:
        raise UsageError(f"{name} is empty; give a text to continue")
    if len(prompt) > model.context:
        raise ContextError(f"{name} has {len(prompt)} tokens, but the model's context is {model.context}; shorten it")
    wrong = [token for token in (min(prompt), max(prompt)) if not 0 <= token < model.config.vocab_size]
    if wrong:
        raise UsageError(
            f"{name} has the token {wrong[0]}, but the model's tokens run from 0 to {model.config.vocab_size - 1}; use "
            "the tokenizer that the model was trained with"
        )


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return `rows` as one tensor padded on the left, and which of its entries are tokens."""
    n = max(map(len, rows))
    tokens = torch.tensor([[0] * (n - len(row)) + list(row) for row in rows])
    valid = torch.tensor([[False] * (n - len(row)) + [True] * len(row) for row in rows])
    return tokens, valid
