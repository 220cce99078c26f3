"""Responses of a language model to prompts: sampled, or all that there are, with their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.errors import ContextError
from axon_core.generation import decode
from axon_core.interfaces.model import CausalLM
from axon_core.likelihood import Sequences, completion_logprobs
from axon_core.randomness import Key
from axon_core.sampling import Sampling
from axon_core.tokenizer import Tokenizer

__all__ = ["Asked", "asked", "every_response", "logprobs", "respond", "texts"]


class Asked(NamedTuple):
    """A prompt that is to be responded to."""

    text: str
    """What it says."""
    tokens: list[int]
    """Its tokens."""


def asked(
    prompts: Sequence[tuple[str, str]], tokenizer: Tokenizer, model: CausalLM, response_tokens: int
) -> list[Asked]:
    """Return pairs of a name and a prompt as tokens.

    Raises:
        DataError: one cannot be encoded.
        ContextError: one is too long for a response to fit into the model's context; the message names it.
    """
    found = [Asked(text, tokenizer.encode_prompt(text)) for _, text in prompts]
    for (name, _), prompt in zip(prompts, found, strict=True):
        if len(prompt.tokens) + response_tokens > model.context:
            raise ContextError(
                f"{name} has {len(prompt.tokens)} tokens and its response up to {response_tokens}, but the model's "
                f"context is {model.context}; shorten the prompt, leave it out, or lower response_tokens"
            )
    return found


def respond(
    model: CausalLM,
    prompts: Sequence[Asked],
    tokenizer: Tokenizer,
    *,
    n: int,
    response_tokens: int,
    key: Key,
    temperature: float = 1.0,
    rows: int = 256,
) -> list[list[list[int]]]:
    """Return n responses to each prompt, as tokens, `eos` included where one ended so.

    A response depends on its prompt, its number and the key alone; `rows` of them run at once.
    """
    pairs = [(prompt, i, j) for i, prompt in enumerate(prompts) for j in range(n)]
    found: list[list[int]] = []
    for first in range(0, len(pairs), rows):
        some = pairs[first : first + rows]
        answers = [list[int]() for _ in some]
        steps = decode(
            model,
            [prompt.tokens for prompt, _, _ in some],
            [key(i, j).seed for _, i, j in some],
            max_new_tokens=response_tokens,
            sampling=Sampling(temperature=temperature),
            stop=tokenizer.eos,
        )
        for step in steps:
            for answer, token in zip(answers, step, strict=True):
                if token is not None:
                    answer.append(token)
        found += answers
    if tokenizer.eos is not None:
        found = [answer if len(answer) == response_tokens else [*answer, tokenizer.eos] for answer in found]
    return [found[i : i + n] for i in range(0, len(found), n)]


def every_response(
    model: CausalLM, prompt: Asked, tokenizer: Tokenizer, response_tokens: int
) -> tuple[list[list[int]], Float[Tensor, " y"]]:
    """Return all responses that the model can give to a prompt, and their probabilities, which sum to 1."""
    tokens = range(model.config.vocab_size)
    responses = [
        list(response)
        for n in range(1, response_tokens + 1)
        for response in product(tokens, repeat=n)
        if tokenizer.eos not in response[:-1] and (response[-1] == tokenizer.eos or n == response_tokens)
    ]
    return responses, logprobs(model, [(prompt, response) for response in responses]).exp()


@torch.no_grad()
def logprobs(model: CausalLM, pairs: Sequence[tuple[Asked, Sequence[int]]], rows: int = 512) -> Float[Tensor, " b"]:
    """Return log p(response | prompt) of each pair, in float64."""
    device = next(model.parameters()).device
    parts = [
        completion_logprobs(model, Sequences.of((p.tokens, r) for p, r in pairs[first : first + rows]).to(device))
        for first in range(0, len(pairs), rows)
    ]
    return torch.cat(parts).double().cpu()


def texts(tokenizer: Tokenizer, responses: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of responses."""
    return [tokenizer.decode(response) for response in responses]
