"""From logits to the next token: temperature, top-k, top-p, and one uniform number per draw."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from axon_core.config import Config


class Sampling(Config):
    """How the next token is chosen. The filters apply in the order of the fields."""

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 0 always takes the most likely token."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep the k most likely tokens."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    """Keep the most likely tokens until their probabilities exceed p (arXiv 1904.09751, Section 3.1)."""


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


def choose(
    logits: Float[Tensor, "b v"], sampling: Sampling, uniform: Float[Tensor, " b"] | None = None
) -> Int[Tensor, " b"]:
    """Return the next token of each row: the first whose cumulative probability exceeds the row's `uniform` number.

    Rows do not affect each other. `uniform`, in [0, 1), is needed unless the temperature is 0.
    """
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
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = uniform.double().unsqueeze(-1) * cumulative[:, -1:]  # the sum may miss 1 by rounding
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
