"""From the scores of a step to the next token of each text, and to the log-probabilities that come with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import CheckpointError, Sampling, widen
from axon_core.generation import sample_tokens
from axon_eet.answer import Scored
from axon_eet.text import RunningText

__all__ = ["ChosenToken", "choose", "score_prompt"]

_AT_ONCE = 64  # positions of a prompt that are scored at once


class ChosenToken(NamedTuple):
    """The next token of a text."""

    token: int
    """The token."""
    logprob: float
    """Its log-probability."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, the likeliest first."""


def choose(
    texts: Sequence[RunningText], scores: Float[Tensor, "b v"], n: int
) -> Iterator[ChosenToken | CheckpointError]:
    """Yield the next token of each text, chosen as its question says, or the error that its scores are not finite.

    Only the first n tokens are drawn: those that the tokenizer has.
    """
    scores = widen(scores)
    logprobs, scores = scores.log_softmax(-1)[:, :n], scores[:, :n]
    groups: dict[Sampling, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text.answer.question.sampling, []).append(i)
    tokens = [0] * len(texts)
    for sampling, at in groups.items():
        uniform = torch.tensor([texts[i].uniform for i in at], device=scores.device)
        seen = None
        if sampling.repetition_penalty != 1:
            seen = torch.stack([_seen(texts[i], scores) for i in at])
        chosen = sample_tokens(scores if len(groups) == 1 else scores[at], sampling, uniform, seen)
        for i, token in zip(at, chosen.tolist(), strict=True):
            tokens[i] = token
    own = logprobs.gather(-1, torch.tensor(tokens, device=scores.device).unsqueeze(-1)).squeeze(-1).tolist()
    for i, (text, token, logprob) in enumerate(zip(texts, tokens, own, strict=True)):
        if not math.isfinite(logprob):
            yield CheckpointError(
                f"the model's scores must be finite, but those of token {len(text.tokens) + 1} of this text are not "
                f"(log-probability {logprob}): use another dtype if numbers overflow, as in float16, or other weights "
                "if these are damaged"
            )
            continue
        if text.seen is not None:
            text.seen[token] = True
        yield ChosenToken(token, logprob, _top(logprobs[i], text.answer.question.logprobs))


def score_prompt(text: RunningText, start: int, scores: Float[Tensor, "s v"], n: int) -> None:
    """Append to the answer's prompt the tokens that these scores are of: the one after position `start` first.

    The likeliest are among the first n tokens.
    """
    prompt, k = text.answer.prompt, text.answer.question.logprobs
    for first in range(0, len(scores), _AT_ONCE):
        logprobs = widen(scores[first : first + _AT_ONCE]).log_softmax(-1)
        for i, row in enumerate(logprobs):
            place = start + first + i + 1
            if place == len(prompt) < text.prompt:
                token = text.tokens[place]
                prompt.append(Scored(token, float(row[token]), _top(row[:n], k)))


def _top(logprobs: Float[Tensor, " v"], k: int | None) -> tuple[tuple[int, float], ...]:
    if not k:
        return ()
    values, tokens = logprobs.topk(min(k, len(logprobs)))
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))


def _seen(text: RunningText, scores: Float[Tensor, "b v"]) -> Tensor:
    if text.seen is None:
        text.seen = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
        text.seen[[token for token in text.tokens if token < len(text.seen)]] = True
    return text.seen
