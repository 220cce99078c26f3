"""What a language model learns from: the interface that a text in memory and token shards on disk share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from jaxtyping import Int
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from axon_core.config import Config
from axon_core.randomness import Key
from axon_core.text.tokenizer import Tokenizer

__all__ = ["LanguageData", "LanguageExamples", "SourcePlan", "piece_lengths"]


class SourcePlan(Config):
    """One source of the data, and how often a training goes through it."""

    name: str
    """What it is called: a path, or what it is."""
    tokens: NonNegativeInt
    """Tokens that are trained on, without those held out."""
    held_out: NonNegativeInt
    """Tokens that evaluation reads: those held out, or a validation part."""
    evaluated: Literal["held out", "for validation"] = "held out"
    """Which of the two they are."""
    share: NonNegativeFloat
    """Its share of the training's examples, from 0 to 1."""
    epochs: NonNegativeFloat
    """How many times the training goes through all of its windows."""

    def __str__(self) -> str:
        """One line for people."""
        share = "" if self.share == 1 else f", {100 * self.share:.4g} % of the examples"
        evaluated = f"{self.held_out:,} {self.evaluated}"
        return f"{self.name}: {self.tokens:,} tokens{share}, {self.epochs:,.3g} epochs; {evaluated}"


def piece_lengths(tokenizer: Tokenizer) -> Int[Tensor, " v"]:
    """Return the UTF-8 length of each token's text."""
    return torch.tensor([len(tokenizer.piece(token)) for token in range(tokenizer.vocab_size)])


class LanguageExamples(Protocol):
    """Training examples in an order that is known at every step, so that a run may stop and continue."""

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """Return the `size` examples of a step: `tokens` `(b n+1)`, inputs and targets shifted by one.

        If documents are masked from one another, `documents` `(b n)` number those of the inputs.
        """
        ...

    def sources(self, examples: int) -> Sequence[SourcePlan]:
        """Return the sources, and how often so many examples go through each."""
        ...


class LanguageData(Protocol):
    """Tokens to train on, and tokens held out."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What turned the text into tokens."""
        ...

    @property
    def digest(self) -> str:
        """A checksum of all tokens, which tells them apart from others."""
        ...

    @property
    def held_out_targets(self) -> int:
        """How many held-out tokens are predicted, if all are."""
        ...

    def examples(self, context: int, key: Key) -> LanguageExamples:
        """Return windows of `context + 1` tokens in an order that depends on `key`."""
        ...

    def held_out_examples(self, context: int, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield examples as `LanguageExamples.batch` returns them, up to `size` at a time, that cover what is held out.

        Each target occurs exactly once. If that makes more than `most` targets, they are windows, spread evenly, that
        together have at least `most`.
        """
        ...

    def beginning(self, size: int) -> list[int]:
        """Return the first held-out tokens, up to `size` of them."""
        ...
