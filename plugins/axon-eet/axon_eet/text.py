"""A text that the engine writes: its tokens, where it stands, and what its next token is drawn with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from axon_core import Cache, Key
from axon_core.generation import TextStream
from axon_eet.answer import Answer
from axon_eet.blocks import BlockTable

__all__ = ["RunningText"]

_DRAWN = 256  # random numbers drawn at a time


@dataclass(eq=False)
class RunningText:
    """One text of an answer, while it is written."""

    answer: Answer
    """What it is part of."""
    choice: int
    """Its number among the answer's texts."""
    arrival: int
    """How many texts the engine was asked for before it."""
    prompt: int
    """How many of its tokens are the prompt's."""
    tokens: list[int]
    """The prompt's tokens and those generated."""
    stream: TextStream
    """From tokens to characters."""
    first: int = 0
    """Where the part that the model sees begins: later than 0 if the text has outgrown the model's context."""
    computed: int = 0
    """How many tokens of that part have their keys and values stored."""
    reached: int = 0
    """The most tokens that were ever stored."""
    table: BlockTable = field(default_factory=BlockTable)
    """The blocks in which they are stored."""
    cache: Cache | None = None
    """What they are stored in, if not in blocks."""
    seen: Bool[Tensor, " v"] | None = None
    """The tokens that its repetition penalty applies to, if it has one."""

    def __post_init__(self) -> None:
        question = self.answer.question
        self._generator = Key((question.seed + self.choice, "sample")).generator()
        self._numbers: list[float] = []

    @property
    def order(self) -> tuple[int, int]:
        """Where it stands among the others: by priority, then by arrival."""
        return -self.answer.question.priority, self.arrival

    @property
    def pending(self) -> int:
        """How many tokens that the model must see have not been computed."""
        return len(self.tokens) - self.first - self.computed

    @property
    def uniform(self) -> float:
        """The random number of the next token: it depends on the seed and the token's place alone."""
        place = len(self.tokens) - self.prompt
        while len(self._numbers) <= place:
            self._numbers += torch.rand(_DRAWN, generator=self._generator, dtype=torch.float32).tolist()
        return self._numbers[place]

    def next_tokens(self, n: int) -> list[int]:
        """Return the first `n` pending tokens."""
        start = self.first + self.computed
        return self.tokens[start : start + n]
