"""Ranked answers as tokens: read, checked, split, and batched so that a prompt's answers stay together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from axon_core import AxonError, DataError
from axon_core.alignment import Sequences, encode_replies
from axon_core.checkpoint import digest
from axon_core.registry import Spec
from axon_core.text import (
    PAD,
    ChatTemplate,
    Comparison,
    CompletionRecord,
    Dialogue,
    Prompt,
    Ranking,
    RowsConfig,
    Tokenizer,
    line_names,
    split_records,
)
from axon_dpo import StatedPreference, number_raters, rater_column

__all__ = ["Ranked", "RankedConfig", "RankedData", "collate_ranked"]


class RankedConfig(RowsConfig):
    """The `[data]` table of a recipe whose data are ranked answers."""

    path: str
    """Rows of `{"prompt", "chosen", "rejected"[, "margin"]}`, of `{"prompt", "responses", "ranking"}`, or of another
    known schema: JSON lines, also as `.gz`, a `.json` array, or parquet. Either all rows name their `rater`, or none
    does."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of them, at the file's end, that is held out of training and used for evaluation."""
    demonstrations: str | None = None
    """Rows of `{"prompt", "completion"}`, or of another schema of demonstrations, whose mean score is to be 0; left
    out, the best answers of `path`."""
    tokenizer: Spec = Spec(type="byte")
    """How text becomes tokens, for a new model; a saved one has its own."""


class Ranked(NamedTuple):
    """A prompt and its ranked answers as tokens."""

    name: str
    """What to call it in a message."""
    prompt: list[int]
    """What all texts begin with."""
    answers: list[list[int]]
    """How they continue, the best first."""
    margin: float
    """By how much a better answer's score should be higher."""
    rater: int | None = None
    """The number of who ranked them, if the data name their raters."""

    def judgements(self) -> Generator[StatedPreference]:
        """Yield who preferred what, by pairs; all are by one rater if the data do not name theirs."""
        for pair in combinations([(*self.prompt, -1, *answer) for answer in self.answers], 2):
            yield StatedPreference(self.name, self.rater or 0, *pair)


@dataclass(frozen=True)
class RankedData:
    """Ranked answers to learn from, those held out, and the demonstrations whose mean score is to be 0.

    Attributes:
        tokenizer: what turned the texts into tokens.
        train: the first of the rankings.
        held_out: the rest.
        demonstrations: prompts and completions as tokens.
        raters: the names of those who ranked, by number; empty if the data do not name them.
    """

    tokenizer: Tokenizer
    train: tuple[Ranked, ...]
    held_out: tuple[Ranked, ...]
    demonstrations: tuple[tuple[list[int], list[int]], ...]
    raters: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        records: Sequence[Comparison | Ranking],
        tokenizer: Tokenizer,
        context: int,
        settings: RankedConfig,
        demonstrations: Sequence[CompletionRecord | Dialogue] = (),
    ) -> Self:
        """Tokenize rankings and split them; a finished text ends with `eos`, where the tokenizer has one.

        Raises:
            DataError: a text cannot be encoded, two answers are the same tokens, there are fewer than two rankings, or
                some name their rater and others do not.
            ContextError: a prompt and an answer are longer than the context.
        """
        names = line_names(records, settings.path)
        raters, numbers = number_raters(records, names)
        template = settings.chat_template([*records, *demonstrations], tokenizer)
        ranked = [
            _encoded(record, tokenizer, template, name)._replace(rater=number)
            for record, name, number in zip(records, names, numbers, strict=True)
        ]
        for one in ranked:
            pairs = ((one.prompt, answer) for answer in one.answers)
            Sequences.of(pairs, context=context, names=[one.name] * len(one.answers))
        train, held_out = split_records(ranked, settings.held_out, "ranked prompts", settings.validation)
        best = [(one.prompt, one.answers[0]) for one in train]
        names = line_names(demonstrations, settings.demonstrations or "the demonstrations")
        given: list[tuple[list[int], list[int]]] = []
        for name, record in zip(names, demonstrations, strict=True):
            try:
                prompt, (completion,) = encode_replies(*_last_answer(record), tokenizer, template)
            except AxonError as error:
                raise DataError(f"{name}: {error}") from None
            given.append((prompt, completion))
        if given:
            Sequences.of(given, context=context, names=names)
        return cls(tokenizer, train, held_out, tuple(given or best), raters)

    @property
    def digest(self) -> str:
        """A checksum that changes with the rankings and demonstrations or their tokens."""
        parts = (self.train, self.held_out)
        rated = [(self.raters, [[ranked.rater for ranked in part] for part in parts])] if self.raters else []
        return digest(*([ranked[1:4] for ranked in part] for part in parts), self.demonstrations, *rated)


def collate_ranked(ranked: Sequence[Ranked]) -> dict[str, Tensor]:
    """Return `tokens` and `valid` `(b k n)` of the answers after their prompts, the best first, and `margin` `(b)`.

    Where a prompt has fewer answers than others, nothing is valid. If the data name their raters, `rater` `(b)` is the
    number of each one's.
    """
    rows = Sequences.of((one.prompt, answer) for one in ranked for answer in one.answers)
    size = max(len(one.answers) for one in ranked)
    present = torch.tensor([[rank < len(one.answers) for rank in range(size)] for one in ranked])
    tokens = torch.full((*present.shape, rows.tokens.shape[1]), PAD)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    tokens[present], valid[present] = rows.tokens, rows.valid
    return {
        "tokens": tokens,
        "valid": valid,
        "margin": torch.tensor([one.margin for one in ranked], dtype=torch.float32),
        **rater_column(one.rater for one in ranked),
    }


def _encoded(record: Comparison | Ranking, tokenizer: Tokenizer, template: ChatTemplate | None, name: str) -> Ranked:
    if isinstance(record, Comparison):
        both, margin = {"chosen": record.chosen, "rejected": record.rejected}, record.margin
        texts = [(text, name not in record.unfinished) for name, text in both.items()]
    else:
        texts, margin = [(record.responses[i], i not in record.unfinished) for i in record.ranking], 0.0
    try:
        prompt, answers = encode_replies(record.prompt, texts, tokenizer, template)
    except AxonError as error:
        raise DataError(f"{name}: {error}") from None
    if len({tuple(answer) for answer in answers}) < len(answers):
        raise DataError(f"{name}: the answers must differ, but two have the same tokens; remove one")
    return Ranked(name, prompt, answers, margin)


def _last_answer(record: CompletionRecord | Dialogue) -> tuple[Prompt, list[tuple[str, bool]]]:
    """Return the prompt of a demonstration, and its answer, which is finished."""
    if isinstance(record, CompletionRecord):
        return record.prompt, [(record.completion, True)]
    *asked, last = record.messages
    if last.role != "assistant":
        raise DataError("a dialogue must end with the assistant's message; remove the last one, or add its answer")
    return tuple(asked), [(last.content, True)]
