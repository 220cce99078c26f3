"""Labels of raters who are not always right, as a mixture of right and wrong answers: pure functions.

Rater m is right with probability C_m (the reliability). Δ = r_w − r_l is by how much the reward of the text that was
preferred is higher; without wrong answers it is preferred with probability σ(Δ), the Bradley–Terry model (arXiv
2305.18290, Section 3, Eq. 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["label_logprob", "labels_logprob", "reliability_posterior", "reliability_update", "right_posterior"]

_POINTS = 4000
"""Points of the grid on which a posterior is summed: far closer than the narrowest that this many labels give."""
_BLOCK = 512


def label_logprob(delta: Float[Tensor, "*b"], reliability: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return ln P with P = C σ(Δ) + (1 − C) σ(−Δ): how probable a label is.

    Its derivative by Δ is γ − σ(Δ) with γ = `right_posterior`, as for the usual loss with γ as a soft label.

    Args:
        delta: Δ.
        reliability: C of the label's rater, from 0 to 1.
    """
    right, wrong = _log_parts(delta, reliability)
    return torch.logaddexp(right, wrong)


def right_posterior(delta: Float[Tensor, "*b"], reliability: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return γ = C σ(Δ) / P, the probability that a rater's answer was right (the E step).

    Args:
        delta: Δ.
        reliability: C of the label's rater.
    """
    right, wrong = _log_parts(delta, reliability)
    return (right - torch.logaddexp(right, wrong)).exp()


def reliability_update(
    right: Float[Tensor, " n"],
    raters: Int[Tensor, " n"],
    counts: Float[Tensor, " n"],
    n_raters: int,
    prior: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, " m"]:
    """Return C_m = (Σ γ + α − 1) / (n + α + β − 2) of each rater m (the M step).

    A rater without a label, if the prior is uniform, has ½.

    Args:
        right: γ of each label.
        raters: the number of its rater.
        counts: how often that label was given.
        n_raters: how many raters there are.
        prior: α and β, each at least 1, of the Beta distribution of C.
    """
    alpha, beta = prior
    zeros, counts = torch.zeros(n_raters, dtype=right.dtype), counts.to(right.dtype)
    above = zeros.index_add(0, raters, counts * right) + alpha - 1
    below = zeros.index_add(0, raters, counts) + alpha + beta - 2
    return torch.where(below > 0, above / below.clamp(min=1e-300), 0.5).clamp(0, 1)


def labels_logprob(
    delta: Float[Tensor, " n"],
    raters: Int[Tensor, " n"],
    counts: Float[Tensor, " n"],
    reliability: Float[Tensor, " m"],
    prior: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, ""]:
    """Return Σ ln P + Σ_m [(α − 1) ln C_m + (β − 1) ln (1 − C_m)]: what EM raises, in nats.

    Args:
        delta: Δ of each label.
        raters: the number of its rater.
        counts: how often that label was given.
        reliability: C by rater.
        prior: α and β.
    """
    alpha, beta = prior
    logprior = torch.special.xlogy(alpha - 1, reliability) + torch.special.xlogy(beta - 1, 1 - reliability)
    return (counts * label_logprob(delta, reliability[raters])).sum() + logprior.sum()


def reliability_posterior(
    delta: Float[Tensor, " n"],
    raters: Int[Tensor, " n"],
    n_raters: int,
    prior: tuple[float, float] = (9.0, 1.0),
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Return mean and standard deviation of each C_m, given Δ: p(C) ∝ Beta(C; α, β) Π [C σ(Δ) + (1 − C) σ(−Δ)].

    With Δ given, the raters are independent, and each posterior has one axis: it is summed on a grid of midpoints,
    without a start or local optima. The mean of a rater without labels is α / (α + β).

    Args:
        delta: Δ of each label.
        raters: the number of its rater.
        n_raters: how many raters there are.
        prior: α and β of the Beta distribution.
    """
    alpha, beta = prior
    grid = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
    logp = ((alpha - 1) * grid.log() + (beta - 1) * (1 - grid).log()).repeat(n_raters, 1)
    for part, who in zip(delta.double().split(_BLOCK), raters.split(_BLOCK), strict=True):
        logp.index_add_(0, who, label_logprob(part[:, None], grid))
    weights = logp.softmax(1)
    mean = weights @ grid
    return mean, (weights * (grid - mean[:, None]).square()).sum(1).sqrt()


def _log_parts(delta: Tensor, reliability: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of C σ(Δ) and of (1 − C) σ(−Δ)."""
    return reliability.log() + logsigmoid(delta), torch.log1p(-reliability) + logsigmoid(-delta)
