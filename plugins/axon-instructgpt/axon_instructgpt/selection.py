"""Choosing among sampled responses: best-of-n and rejection sampling, as pure functions of texts and rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import DataError, TrainingError
from axon_core.text import CompletionRecord

__all__ = ["best_of", "best_of_n_kl", "rejection_sampled"]


def best_of(rewards: Float[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """Return which of each prompt's n responses has the highest reward; of equal ones, the first.

    Source: arXiv 2307.09288, Section 3.2.3.

    Raises:
        TrainingError: a reward is NaN, which cannot be compared.
    """
    for row, column in rewards.isnan().nonzero()[:1].tolist():
        raise TrainingError(f"the reward of response {column} to prompt {row} is NaN; it must be a number")
    return rewards.argmax(-1)


def best_of_n_kl(n: int) -> float:
    """Return log n − (n − 1)/n, in nats: KL(best of n samples ‖ one sample) is at most that (arXiv 2401.01879).

    The two are equal if no two responses have the same reward and none is likely to be drawn twice.
    """
    return math.log(n) - (n - 1) / n


def rejection_sampled(
    prompts: Sequence[str], responses: Sequence[Sequence[str]], rewards: Float[Tensor, "b n"]
) -> list[CompletionRecord]:
    """Return each prompt with the best of its responses, as demonstrations for the next fine-tuning.

    Source: rejection sampling as in arXiv 2307.09288, Section 3.2.3.

    Raises:
        TrainingError: as `best_of`.
        DataError: a prompt, or the best of its responses, is empty; the message names it.
    """
    best = best_of(torch.as_tensor(rewards)).tolist()
    found = list[CompletionRecord]()
    for i, (prompt, texts, choice) in enumerate(zip(prompts, responses, best, strict=True)):
        completion = texts[int(choice)]
        for text, what in ((prompt, f"prompt {i}"), (completion, f"the best response to prompt {i} ({prompt[:40]!r})")):
            if not text:
                raise DataError(f"{what} must have at least one character to be learnt, got ''; leave it out")
        found.append(CompletionRecord(prompt=prompt, completion=completion))
    return found
