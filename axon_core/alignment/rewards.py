"""Scores of responses under a reward, which may be any function, with its results checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.errors import AxonError, TrainingError

__all__ = ["Scorer", "score_responses"]

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Returns one finite number for each prompt and its response, which depends on these two alone.

A scorer whose attribute `judges_ends` is true also gets, as `finished`, whether each response ended by itself. One
whose attribute `reads_tokens` is true also gets, as `prompt_tokens`, the tokens of the prompts, if they are known."""

_ROWS = 512  # responses that are scored at once


class _Row(NamedTuple):
    name: str
    prompt: str
    response: str
    finished: bool
    tokens: Sequence[int] | None

    def __str__(self) -> str:
        return f"{self.name} ({self.prompt[:40]!r}) and the response {self.response[:40]!r}"


def score_responses(
    reward: Scorer,
    prompts: Sequence[tuple[str, str]],
    responses: Sequence[Sequence[str]],
    finished: Sequence[Sequence[bool]] | None = None,
    tokens: Sequence[Sequence[int]] | None = None,
) -> Float[Tensor, "b n"]:
    """Return in float64 what each of n responses to each prompt is worth.

    Args:
        reward: what scores them.
        prompts: each preceded by its name for messages, such as "line 3 of prompts.jsonl".
        responses: n for each prompt.
        finished: whether each ended by itself, rather than being cut off; by default, all did.
        tokens: of each prompt, for a scorer that reads them.

    Raises:
        TrainingError: the reward fails, or is not one finite number for each; the message names the prompt.
    """
    ends = finished or [[True] * len(some) for some in responses]
    rows = [
        _Row(*prompt, text, end, ids)
        for prompt, some, these, ids in zip(prompts, responses, ends, tokens or [None] * len(prompts), strict=True)
        for text, end in zip(some, these, strict=True)
    ]
    found: list[float] = []
    for first in range(0, len(rows), _ROWS):
        found += _some(reward, rows[first : first + _ROWS])
    return torch.tensor(found, dtype=torch.float64).view(len(prompts), -1)


def _some(reward: Scorer, rows: Sequence[_Row]) -> list[float]:
    try:
        found = _called(reward, rows)
    except AxonError:
        raise
    except Exception as error:  # a user's function may raise anything: find the record that makes it
        for row in rows:
            try:
                _called(reward, [row])
            except Exception as alone:
                raise TrainingError(f"the reward of {row} failed: {alone!r}") from alone
        raise TrainingError(
            f"the reward of {len(rows)} responses failed together, but not one by one: {error!r}"
        ) from error
    if len(found) != len(rows):
        raise TrainingError(f"a reward must be one number for each response, got {len(found)} for {len(rows)}")
    for row, score in zip(rows, found, strict=True):
        if not math.isfinite(score):
            raise TrainingError(f"the reward of {row} is {score}; it must be a finite number")
    return found


def _called(reward: Scorer, rows: Sequence[_Row]) -> list[float]:
    more: dict[str, object] = {}
    if getattr(reward, "judges_ends", False):
        more["finished"] = [row.finished for row in rows]
    if getattr(reward, "reads_tokens", False) and all(row.tokens is not None for row in rows):
        more["prompt_tokens"] = [row.tokens for row in rows]
    return [float(score) for score in reward([row.prompt for row in rows], [row.response for row in rows], **more)]
