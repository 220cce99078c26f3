"""The loss of reward models, as a pure function of scores: how surprising a ranking is."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["LARGE_MARGINS", "SMALL_MARGINS", "mean_over_pairs", "ranking_loss"]

SMALL_MARGINS = (1.0, 2 / 3, 1 / 3, 0.0)
"""Margins for answers that are significantly better, better, slightly and negligibly so (2307.09288, App. A.3.3)."""
LARGE_MARGINS = (3.0, 2.0, 1.0, 0.0)
"""The larger variant of the same (2307.09288, App. A.3.3)."""


def ranking_loss(
    scores: Float[Tensor, "b k"], present: Bool[Tensor, "b k"], margin: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Return −1/C(K, 2) Σ_{i before j} log σ(r_i − r_j − m) of each prompt's K ranked answers.

    Source: arXiv 2203.02155, Section 3.5, Eq. 1; the margin m: arXiv 2307.09288, Section 3.2.2, Eq. 2.

    Args:
        scores: r, the best answer of each prompt first.
        present: False where a prompt has fewer answers than others; each has at least two.
        margin: by how much a better answer's score should be higher.
    """
    gaps = scores[:, :, None] - scores[:, None, :]
    return mean_over_pairs(-logsigmoid(gaps - margin[:, None, None]), present)


def mean_over_pairs(values: Float[Tensor, "b k k"], present: Bool[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the mean of a prompt's values [i, j] over all pairs of its answers, i the better one.

    Source: arXiv 2203.02155, Section 3.5, Eq. 1.
    """
    pairs = (present[:, :, None] & present[:, None, :]).triu(diagonal=1)
    return torch.where(pairs, values, 0).sum((1, 2)) / pairs.sum((1, 2))
