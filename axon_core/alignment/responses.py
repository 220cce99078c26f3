"""Responses of a language model to prompts, as tokens: what alignment samples and scores."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from axon_core.generation.api import decode
from axon_core.generation.sampling import Sampling
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import Tokenizer

__all__ = ["Response", "is_finished", "response_text", "sample_responses"]


class Response(NamedTuple):
    """What a model wrote after a prompt."""

    tokens: list[int]
    """Its tokens, including the one that ends it; at least one."""
    finished: bool
    """Whether it ended by itself."""


def sample_responses(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    ends: Collection[int],
    vocab_size: int | None = None,
    rows: int | None = None,
) -> list[Response]:
    """Return a response to each prompt, which depends on the prompt and its seed alone, not on the others.

    Args:
        model: any causal language model.
        prompts: the tokens of each.
        seeds: what each response's random numbers derive from.
        max_new_tokens: the longest response.
        temperature: what logits are divided by.
        ends: the tokens that end a response (`Tokenizer.ends`); without any, every response has `max_new_tokens`.
        vocab_size: how many tokens the tokenizer has; rows of the model beyond it are never drawn. None: all may be.
        rows: how many run at once; by default all.

    Raises:
        UsageError: a prompt is empty, or holds a number that is not a token of the model.
        ContextError: a prompt is longer than the model's context.
    """
    size = rows or max(1, len(prompts))
    sampling, found = Sampling(temperature=temperature), list[list[int]]()
    draw = partial(decode, model, max_new_tokens=max_new_tokens, sampling=sampling, stop=ends, vocab_size=vocab_size)
    for first in range(0, len(prompts), size):
        some, these = prompts[first : first + size], seeds[first : first + size]
        written = [list[int]() for _ in some]
        for step in draw(some, these):
            for row, token in zip(written, step, strict=True):
                if token is not None:
                    row.append(token)
        found += written
    return [Response(row, is_finished(ends, row)) for row in found]


def is_finished(ends: Collection[int], response: Sequence[int]) -> bool:
    """Return whether a response ended by itself, with one of the tokens `ends`; if there are none, each did."""
    return not ends or response[-1] in ends


def response_text(tokenizer: Tokenizer, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return what a response adds to the text of its prompt; the token that ends it adds nothing.

    Raises:
        DataError: a token is not in the vocabulary.
    """
    text = response[:-1] if response and response[-1] in tokenizer.ends else response
    return tokenizer.decode(text, after=prompt)
