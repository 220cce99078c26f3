"""Responses of a language model to prompts: sampled, or all possible ones, with their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import Key
from axon_core.alignment import Sequences, completion_logprobs, response_text, sample_responses
from axon_core.interfaces import CausalLM
from axon_core.text import EncodedPrompt, Tokenizer, check_room, encode_prompts, read_prompts

__all__ = ["asked", "every_response", "logprobs", "sampled", "texts"]


def asked(path: str, tokenizer: Tokenizer, model: CausalLM, response_tokens: int) -> tuple[EncodedPrompt, ...]:
    """Return the prompts of a file of JSON lines, each once, as tokens.

    Raises:
        DataError: the file cannot be read or is empty, a line has no prompt, or one cannot be encoded.
        ContextError: one is too long for a response to fit into the model's context; the message names it.
    """
    names: dict[str, str] = {}
    for name, text in read_prompts(path):
        names.setdefault(text, name)
    prompts = encode_prompts(((name, text) for text, name in names.items()), tokenizer)
    check_room(prompts, response_tokens, model.context, "model")
    return prompts


def sampled(
    model: CausalLM,
    prompts: Sequence[EncodedPrompt],
    tokenizer: Tokenizer,
    *,
    n: int,
    response_tokens: int,
    key: Key,
    temperature: float = 1.0,
    rows: int = 256,
) -> list[list[list[int]]]:
    """Return n responses to each prompt, as tokens, including the one that ends it.

    A response depends only on its prompt, its number and the key; `rows` of them run at once.
    """
    found = sample_responses(
        model,
        [prompt.tokens for prompt in prompts for _ in range(n)],
        [key(i, j).seed for i in range(len(prompts)) for j in range(n)],
        max_new_tokens=response_tokens,
        temperature=temperature,
        ends=tokenizer.ends,
        vocab_size=tokenizer.vocab_size,
        rows=rows,
    )
    return [[response.tokens for response in found[i : i + n]] for i in range(0, len(found), n)]


def every_response(
    model: CausalLM, prompt: EncodedPrompt, tokenizer: Tokenizer, response_tokens: int
) -> tuple[list[list[int]], Float[Tensor, " y"]]:
    """Return all responses that the model can give to a prompt, and their probabilities, which sum to 1."""
    size, ends = min(model.config.vocab_size, tokenizer.vocab_size), tokenizer.ends
    responses = [
        list(response)
        for n in range(1, response_tokens + 1)
        for response in product(range(size), repeat=n)
        if ends.isdisjoint(response[:-1]) and (n == response_tokens or response[-1] in ends)
    ]
    return responses, logprobs(model, [(prompt, response) for response in responses], size).exp()


@torch.no_grad()
def logprobs(
    model: CausalLM,
    pairs: Sequence[tuple[EncodedPrompt, Sequence[int]]],
    vocab_size: int | None = None,
    rows: int = 512,
) -> Float[Tensor, " b"]:
    """Return log p(response | prompt) of each pair, in float64; `vocab_size` as for `scored_logprobs`."""
    device = next(model.parameters()).device
    parts = [
        completion_logprobs(
            model,
            Sequences.of((p.tokens, r) for p, r in pairs[first : first + rows]).to(device),
            vocab_size=vocab_size,
        )
        for first in range(0, len(pairs), rows)
    ]
    return torch.cat(parts).cpu().double()


def texts(tokenizer: Tokenizer, prompt: EncodedPrompt, responses: Sequence[Sequence[int]]) -> list[str]:
    """Return what each of the responses adds to the text of their prompt."""
    return [response_text(tokenizer, prompt.tokens, response) for response in responses]
