"""Rewards of many responses, checked: each a finite number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.errors import AxonError, TrainingError

__all__ = ["Scorer", "scored"]

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""One number for each prompt and its response."""

_ROWS = 512


def scored(
    reward: Scorer, prompts: Sequence[tuple[str, str]], responses: Sequence[Sequence[str]]
) -> Float[Tensor, "b n"]:
    """Return the rewards of n responses to each prompt, which comes after what to call it in a message.

    Raises:
        TrainingError: the reward fails, or is not one finite number for each; the message names the prompt.
    """
    rows = [(name, prompt, text) for (name, prompt), some in zip(prompts, responses, strict=True) for text in some]
    found: list[float] = []
    for first in range(0, len(rows), _ROWS):
        some = rows[first : first + _ROWS]
        where = f"responses to {some[0][0]} and after"
        try:
            values = [float(value) for value in reward([row[1] for row in some], [row[2] for row in some])]
        except AxonError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise TrainingError(f"the reward of {where} failed: {error!r}") from error
        if len(values) != len(some):
            raise TrainingError(f"a reward must be one number for each response, got {len(values)} for {len(some)}")
        for (name, _, text), value in zip(some, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the reward of {name} and the response {text[:40]!r} is {value}; it must be finite"
                )
        found += values
    return torch.tensor(found, dtype=torch.float64).view(len(prompts), -1)
