"""Answers that were found desirable or not, as tokens; each prompt also stands beside the answer to another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from axon_core import AxonError, ContextError, DataError
from axon_core.alignment import Sequences, encode_replies
from axon_core.checkpoint import digest
from axon_core.text import ChatTemplate, Feedback, RowsConfig, Tokenizer, line_names, read_feedback, split_records

__all__ = ["FeedbackConfig", "FeedbackData", "Judged", "Judgements"]


class FeedbackConfig(RowsConfig):
    """The `[data]` table of a recipe whose data are answers that were found desirable or not."""

    path: str
    """Rows of `{"prompt", "completion", "label"}` or of another known schema: JSON lines, also as `.gz`, a `.json`
    array, or parquet. A comparison counts as two: the chosen answer is desirable, the rejected one is not."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the answers, at the file's end, that is held out of training and used for evaluation."""


class Judged(NamedTuple):
    """The tokens of a prompt and an answer to it."""

    name: str
    """What to call it in a message."""
    prompt: list[int]
    """What the answer follows."""
    completion: list[int]
    """The answer."""
    desirable: bool
    """Whether it is."""


class Judgements(tuple[Judged, ...]):
    """Answers, ready for a model.

    Args:
        judged: the answers.
        context: the most tokens a model takes; an answer to another prompt is cut to fit.

    Attributes:
        others: for each answer, the number of the next one that belongs to another prompt, from the end on the first.
    """

    context: int
    others: list[int]

    def __new__(cls, judged: Iterable[Judged], context: int) -> Self:
        """Hold the answers, and find one to another prompt for each."""
        self = super().__new__(cls, judged)
        self.context, self.others = context, _others([one.prompt for one in self])
        return self

    def rows(self, picks: Iterable[int]) -> dict[str, Tensor]:
        """Return `tokens`, `valid` and `scored` `(b 2 n)` of some answers, and which are `desirable` `(b)`.

        Beside each answer stands, after the same prompt, the next one of the data that belongs to another prompt.
        """
        chosen = [(self[i], self[self.others[i]]) for i in picks]
        both = [
            (one.prompt, text)
            for one, other in chosen
            for text in (one.completion, other.completion[: self.context - len(one.prompt)])
        ]
        rows = {name: rows.unflatten(0, (-1, 2)) for name, rows in vars(Sequences.of(both)).items()}
        return {**rows, "desirable": torch.tensor([one.desirable for one, _ in chosen])}


@dataclass(frozen=True)
class FeedbackData:
    """Answers as tokens: those to train on and those held out.

    Attributes:
        tokenizer: what turned the texts into tokens.
        train: the first of them.
        held_out: the rest.
    """

    tokenizer: Tokenizer
    train: Judgements
    held_out: Judgements

    @classmethod
    def load(cls, settings: FeedbackConfig, tokenizer: Tokenizer, context: int) -> Self:
        """Read a file, then continue as `of` does. Also raises `DataError` if a row is no feedback."""
        records = read_feedback(settings.path, settings)
        names, template = line_names(records, settings.path), settings.chat_template(records, tokenizer)
        return cls.of(records, tokenizer, context, settings.held_out, names, template, settings.validation)

    @classmethod
    def of(
        cls,
        records: Sequence[Feedback],
        tokenizer: Tokenizer,
        context: int,
        held_out: float = 0.1,
        names: Sequence[str] | None = None,
        template: ChatTemplate | None = None,
        validation: float | None = None,
    ) -> Self:
        """Tokenize answers and split them; at least one is held out.

        A text ends with `eos` if the tokenizer has one.

        Args:
            records: the answers.
            tokenizer: the models' own.
            context: the most tokens a model can take.
            held_out: the share of them, at their end, that is held out of training.
            names: what to call each in messages; by default "answer" and its number, counted from 1.
            template: what renders prompts that are messages, and the answers to them.
            validation: the share of the rest that is held out instead, the first share left out.

        Raises:
            DataError: a text cannot be encoded, or there are fewer than two answers.
            ContextError: a prompt and its answer are longer than the context.
        """
        names = names or [f"answer {i}" for i in range(1, len(records) + 1)]
        judged = [_encoded(record, tokenizer, template, name) for record, name in zip(records, names, strict=True)]
        for one in judged:
            if (size := len(one.prompt) + len(one.completion)) > context:
                raise ContextError(
                    f"{one.name}: prompt and completion must have at most {context} tokens together, the model's "
                    f"context, got {size}; shorten it, leave it out, or use a model with a longer context"
                )
        train, rest = split_records(judged, held_out, "answers", validation)
        return cls(tokenizer, Judgements(train, context), Judgements(rest, context))

    @property
    def digest(self) -> str:
        """A checksum that changes with the answers, their labels or their tokens."""
        return digest(*([one[1:] for one in part] for part in (self.train, self.held_out)))


def _others(prompts: Sequence[list[int]]) -> list[int]:
    """Return for each prompt the number of the next one, from the end on the first, that differs, if one does."""
    n = len(prompts)
    others = [(i + 1) % n for i in range(n)]
    for i in reversed(range(2 * n)):  # twice around: the last ones depend on the first
        if prompts[i % n] == prompts[(i + 1) % n]:
            others[i % n] = others[(i + 1) % n]
    return others


def _encoded(record: Feedback, tokenizer: Tokenizer, template: ChatTemplate | None, name: str) -> Judged:
    try:
        prompt, (completion,) = encode_replies(record.prompt, [(record.completion, True)], tokenizer, template)
    except AxonError as error:
        raise DataError(f"{name}: {error}") from None
    return Judged(name, prompt, completion, record.label)
