"""From logits to the next token: repetition penalty, temperature, filters, and one uniform number per draw."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from axon_core.config import Config
from axon_core.precision import widen

_TOP = 1024  # logits that are sorted first for top-p: nearly always enough for a trained model


class Sampling(Config):
    """How the next token is chosen. The fields apply in their order."""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens of the prompt and text become less likely; 1 changes nothing (arXiv 1909.05858, Section 4.1)."""
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
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return _keep(logits, least, torch.full_like(least, k, dtype=torch.long))


def keep_top_p(logits: Float[Tensor, "b v"], p: float, finite: int | None = None) -> Float[Tensor, "b v"]:
    """Set the logits of improbable tokens to −∞ (arXiv 1904.09751, Section 3.1).

    In order of falling probability, a token stays while the probability before it is at most p: the most likely one
    always does. Of equally likely ones, those with the lowest index come first. `finite` is an upper bound on the
    number of logits of a row above −∞, if known.
    """
    # In one order: torch divides a sum among threads if it is the only one, which then differs from one among others.
    total = (logits - logits.amax(-1, keepdim=True)).double().exp().cumsum(-1)[:, -1:]
    enough = logits.shape[-1] if finite is None else min(finite, logits.shape[-1])
    least, count = _nucleus(logits.topk(min(_TOP, enough)).values, total, p)
    if enough > _TOP:
        # Sorting all is slow, and rarely needed. Each row is treated by itself, whatever those beside it need.
        flat = (count == _TOP).squeeze(-1)
        if bool(flat.any()):
            least[flat], count[flat] = _nucleus(logits[flat].sort(descending=True).values, total[flat], p)
    return _keep(logits, least, count)


def _nucleus(
    ordered: Float[Tensor, "b k"], total: Float[Tensor, "b 1"], p: float
) -> tuple[Float[Tensor, "b 1"], Int[Tensor, "b 1"]]:
    """The smallest logit that top-p keeps, and how many it keeps; `total` is Σ exp(s − max s)."""
    probability = (ordered - ordered[:, :1]).double().exp() / total
    count = (probability.cumsum(-1) - probability <= p).sum(-1, keepdim=True).clamp(min=1)  # 0 where one is NaN
    return ordered.gather(-1, count - 1), count


def _keep(logits: Float[Tensor, "b v"], least: Float[Tensor, "b 1"], count: Int[Tensor, "b 1"]) -> Float[Tensor, "b v"]:
    """Set all but the `count` largest logits of a row, down to `least`, to −∞; the first of equal ones stay."""
    above, equal = logits > least, logits == least
    left = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= left))), float("-inf"))


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Set to −∞ the logits of tokens less than `p` times as likely as the likeliest (arXiv 2407.01082, Section 3)."""
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, float("-inf"))


def sample_tokens(
    logits: Float[Tensor, "b v"],
    sampling: Sampling,
    uniform: Float[Tensor, " b"] | None = None,
    seen: Bool[Tensor, "b v"] | None = None,
) -> Int[Tensor, " b"]:
    """Return the next token of each row: the first whose cumulative probability exceeds the row's `uniform` number.

    Rows do not affect each other. `uniform`, in [0, 1), is needed unless the temperature is 0; `seen` marks the tokens
    that a repetition penalty applies to, and is needed if there is one.

    Raises:
        ValueError: one of the two is needed and missing.
    """
    logits = widen(logits)
    if sampling.repetition_penalty != 1:
        if seen is None:
            raise ValueError("a repetition penalty needs the tokens used so far")
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if uniform is None:
        raise ValueError("sampling at a temperature above 0 needs one uniform number per row")
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # no overflow, however low it is
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p, sampling.top_k)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = uniform.double().unsqueeze(-1) * cumulative[:, -1:]  # the sum may miss 1 by rounding
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
