"""From logits to the next token: repetition penalty, temperature, filters, and one uniform number per draw."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from axon_core.config import Config


class Sampling(Config):
    """How the next token is chosen. The fields apply in their order."""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """Tokens of the prompt and of the text so far lose by it; 1 changes nothing (arXiv 1909.05858, Section 4.1)."""
    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 0 always takes the most likely token."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep the k most likely tokens."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    """Keep the most likely tokens until their probabilities exceed p (arXiv 1904.09751, Section 3.1)."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Keep tokens at least min_p times as likely as the most likely one (arXiv 2407.01082, Section 3)."""


def penalise(logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float) -> Float[Tensor, "b v"]:
    """Divide the logits of seen tokens by `penalty` where they are positive, and multiply them where negative.

    Arxiv 1909.05858, Section 4.1, divides either way, which favours a seen token whose logit is negative; taking the
    sign into account has become the custom.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Set all but the k largest logits to −∞; of equal ones those with the lowest index stay, so exactly k are left."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return logits.scatter(-1, order[:, k:], float("-inf"))


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Set the logits of improbable tokens to −∞ (arXiv 1904.09751, Section 3.1).

    In order of falling probability, a token stays while the probability before it is at most p: the most likely one
    always does.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.double().softmax(-1)
    before = probability.cumsum(-1) - probability
    return logits.masked_fill(torch.zeros_like(before > p).scatter(-1, order, before > p), float("-inf"))


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Set to −∞ the logits of tokens less than `p` times as likely as the likeliest (arXiv 2407.01082, Section 3)."""
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, float("-inf"))


def choose(
    logits: Float[Tensor, "b v"],
    sampling: Sampling,
    uniform: Float[Tensor, " b"] | None = None,
    seen: Bool[Tensor, "b v"] | None = None,
) -> Int[Tensor, " b"]:
    """Return the next token of each row: the first whose cumulative probability exceeds the row's `uniform` number.

    Rows do not affect each other. `uniform`, in [0, 1), is needed unless the temperature is 0; `seen` tells the tokens
    that a repetition penalty is for, and is needed where there is one.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        if seen is None:
            raise ValueError("a repetition penalty needs to know the tokens seen so far")
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if uniform is None:
        raise ValueError("sampling at a temperature above 0 needs one uniform number a row")
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # no overflow, however low it is
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = uniform.double().unsqueeze(-1) * cumulative[:, -1:]  # the sum may miss 1 by rounding
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
