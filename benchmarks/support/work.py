"""What a step of alignment is given: how many rows, how long, and which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

LETTERS = 0x4E00
"""Token t is written as the character of this code point plus t."""
BETA = 0.1
LR = 1e-4
BETAS = (0.9, 0.999)


class Example(NamedTuple):
    """A prompt and two responses to it, as tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Work:
    """Rows of a batch, tokens of a prompt and of a response, and the updates of an iteration."""

    batch: int
    prompt: int
    response: int
    epochs: int

    def examples(self, vocab_size: int) -> list[Example]:
        """Return a batch of random tokens: every step has the same, so that no order of examples matters.

        All responses end with the last token, since TRL makes comparisons end with one that marks a text's end.
        """
        sizes = (self.prompt, self.response, self.response)
        tokens = torch.randint(vocab_size, (self.batch, sum(sizes)), generator=torch.Generator().manual_seed(0))
        tokens[:, [sum(sizes[:2]) - 1, -1]] = vocab_size - 1
        return [Example(*(part.tolist() for part in row.split(sizes))) for row in tokens]


def written(tokens: Sequence[int]) -> str:
    """Return tokens as text, a character for each."""
    return "".join(chr(LETTERS + token) for token in tokens)


def reward(responses: Sequence[str]) -> list[float]:
    """Return the share of even tokens of each response: a reward that costs next to nothing."""
    return [sum(ord(letter) % 2 == 0 for letter in text) / max(1, len(text)) for text in responses]
