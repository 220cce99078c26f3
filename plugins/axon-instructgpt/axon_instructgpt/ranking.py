"""The loss of reward models, as a pure function of scores: how surprising a ranking is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["LARGE_MARGINS", "SMALL_MARGINS", "mean_over_pairs", "ranking_loss", "surprise"]

SMALL_MARGINS = (1.0, 2 / 3, 1 / 3, 0.0)
"""Margins for answers that are significantly better, better, slightly and negligibly so (2307.09288, App. A.3.3)."""
LARGE_MARGINS = (3.0, 2.0, 1.0, 0.0)
"""The larger variant of the same (2307.09288, App. A.3.3)."""


def surprise(gap: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return −log σ of a gap of scores, in nats (arXiv 2203.02155, Section 3.5, Eq. 1).

    >>> round(surprise(torch.zeros(())).item(), 6)
    0.693147
    """
    return -logsigmoid(gap)


def ranking_loss(
    scores: Float[Tensor, "b k"],
    present: Bool[Tensor, "b k"],
    margin: Float[Tensor, " b"],
    of_gap: Callable[[Float[Tensor, "b k k"]], Float[Tensor, "b k k"]] = surprise,
) -> Float[Tensor, " b"]:
    """Return −1/C(K, 2) Σ_{i before j} log σ(r_i − r_j − m) of each prompt's K ranked answers.

    Source: arXiv 2203.02155, Section 3.5, Eq. 1; the margin m: arXiv 2307.09288, Section 3.2.2, Eq. 2.

    Args:
        scores: r, the best answer of each prompt first.
        present: False where a prompt has fewer answers than others; each has at least two.
        margin: by how much a better answer's score should be higher.
        of_gap: the loss of a pair at r_i − r_j − m, in place of −log σ.
    """
    gaps = scores[:, :, None] - scores[:, None, :]
    return mean_over_pairs(of_gap(gaps - margin[:, None, None]), present)


def mean_over_pairs(values: Float[Tensor, "b k k"], present: Bool[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the mean of a prompt's values [i, j] over all pairs of its answers, i the better one.

    Source: arXiv 2203.02155, Section 3.5, Eq. 1.
    """
    pairs = (present[:, :, None] & present[:, None, :]).triu(diagonal=1)
    return torch.where(pairs, values, 0).sum((1, 2)) / pairs.sum((1, 2))
