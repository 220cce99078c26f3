"""Generation with any causal language model: batched, cached, and streaming."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core.cache import Cache
from axon_core.errors import CheckpointError, ContextError, UsageError
from axon_core.interfaces.model import CausalLM
from axon_core.randomness import Key
from axon_core.sampling import Sampling, choose
from axon_core.tokenizer import DecodeStream, Tokenizer


@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int = ...,
) -> str: ...
@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: list[str],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int = ...,
) -> list[str]: ...
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str | list[str],
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> str | list[str]:
    """Return the text that follows `prompt`, or the list of texts that follow each of several prompts.

    Args:
        model: any causal language model.
        tokenizer: the one the model was trained with.
        prompt: one text, or several, which are run as one batch and do not affect each other.
        max_new_tokens: how many tokens are generated at most; the tokenizer's end-of-text token ends a text earlier.
        sampling: how tokens are chosen.
        seed: row i of a batch draws what a single prompt with seed `seed + i` draws.

    Raises:
        UsageError: a prompt is empty.
        DataError: a prompt cannot be encoded.
        CheckpointError: the tokenizer is not the model's.
        ContextError: a prompt is longer than the model's context.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    _check_vocabulary(model, tokenizer)
    texts = [""] * len(prompts)
    ids = [tokenizer.encode(text) for text in prompts]
    pieces = [_continuing(tokenizer, row) for row in ids]
    seeds = [seed + i for i in range(len(prompts))]
    for tokens in decode(model, ids, seeds, max_new_tokens=max_new_tokens, sampling=sampling, stop=tokenizer.eos):
        for i, token in enumerate(tokens):
            texts[i] += "" if token is None else pieces[i].push(token)
    texts = [text + rest.finish() for text, rest in zip(texts, pieces, strict=True)]
    return texts[0] if isinstance(prompt, str) else texts


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the pieces of the text that `generate` returns for one prompt, as they come; arguments as there."""
    _check_vocabulary(model, tokenizer)
    ids = tokenizer.encode(prompt)
    pieces = _continuing(tokenizer, ids)
    for (token,) in decode(model, [ids], [seed], max_new_tokens=max_new_tokens, sampling=sampling, stop=tokenizer.eos):
        if token is not None and (piece := pieces.push(token)):
            yield piece
    if rest := pieces.finish():
        yield rest


def decode(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: int | None = None,
) -> Generator[list[int | None], None, None]:
    """Yield, step by step, the next token of each row of `prompts`; None for a row that has ended.

    A row's tokens depend on its prompt and seed alone, not on the other rows. It ends with the token `stop`, which is
    not given out. A text that outgrows the model's context goes on from its last half context.

    Raises:
        UsageError: a prompt is empty.
        ContextError: a prompt is longer than the model's context.
    """
    sampling = sampling or Sampling()
    _check(prompts, model.context)
    rows = [list(prompt) for prompt in prompts]
    first = [0] * len(rows)  # where the part of the row that the model sees begins
    ended = [False] * len(rows)
    generators = [Key((seed, "sample")).generator() for seed in seeds]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        logits, cache = _prefill(model, rows, max_new_tokens, device)
        for step in range(max_new_tokens):
            with torch.inference_mode():
                uniform = torch.cat([torch.rand(1, generator=draws) for draws in generators]).to(device)
                chosen: list[int] = choose(logits, sampling, uniform).tolist()
            for i, token in enumerate(chosen):
                ended[i] = ended[i] or token == stop
                rows[i].append(token)
            yield [None if end else token for end, token in zip(ended, chosen, strict=True)]
            if all(ended) or step + 1 == max_new_tokens:
                return
            full = [i for i, row in enumerate(rows) if len(row) - first[i] > model.context]
            if full:
                for i in full:
                    first[i] = len(rows[i]) - (model.context + 1) // 2
                seen = [row[start:] for row, start in zip(rows, first, strict=True)]
                logits, cache = _prefill(model, seen, max_new_tokens - step - 1, device)
            else:
                with torch.inference_mode():
                    logits = model(torch.tensor(chosen, device=device).unsqueeze(1), cache=cache)[:, -1]
    finally:
        model.train(was_training)


def _continuing(tokenizer: Tokenizer, prompt: Sequence[int]) -> DecodeStream:
    """Return a stream that has given out the prompt: a first space after it is then not taken for the encoder's."""
    pieces = DecodeStream(tokenizer)
    pieces.push(*prompt)
    return pieces


def _check_vocabulary(model: CausalLM, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary {model.config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )


def _check(prompts: Sequence[Sequence[int]], context: int) -> None:
    if not prompts:
        raise UsageError("there is no prompt; give at least one")
    for i, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {i + 1}"
        if not prompt:
            raise UsageError(f"{name} is empty; give it some text to go on from")
        if len(prompt) > context:
            raise ContextError(
                f"{name} has {len(prompt)} tokens, but the model's context is {context}; make it shorter"
            )


def _prefill(
    model: CausalLM, rows: Sequence[Sequence[int]], new: int, device: torch.device
) -> tuple[Float[Tensor, "b v"], Cache]:
    """Run `rows` in one pass, padded on the left, and return the last logits and a cache with room for `new` more."""
    tokens, valid = pad_left(rows)
    n = tokens.shape[1]
    capacity = n + min(new, model.context - min(map(len, rows)))
    with torch.inference_mode():
        cache = model.new_cache(len(rows), capacity)
        mask = None if bool(valid.all()) else valid.to(device)
        features = model.features(tokens.to(device), valid=mask, cache=cache)
        return model.logits(features[:, -1:])[:, -1], cache


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return `rows` as one tensor padded on the left, and which of its entries are tokens."""
    n = max(map(len, rows))
    tokens = torch.tensor([[0] * (n - len(row)) + list(row) for row in rows])
    valid = torch.tensor([[False] * (n - len(row)) + [True] * len(row) for row in rows])
    return tokens, valid
