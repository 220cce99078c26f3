"""Demonstrations as tokens: completions of prompts, or dialogues, and which of their tokens are to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from pydantic import Field

from axon_core import AxonError, ContextError, DataError
from axon_core.alignment import encode_replies
from axon_core.checkpoint import digest
from axon_core.registry import Spec
from axon_core.text import (
    ChatTemplate,
    CompletionRecord,
    Dialogue,
    RowsConfig,
    Tokenizer,
    line_names,
    split_records,
)
from axon_instructgpt.template import answers

__all__ = ["DemonstrationConfig", "Demonstrations", "Example"]


class DemonstrationConfig(RowsConfig):
    """The `[data]` table of a recipe whose data are demonstrations."""

    path: str
    """Rows of `{"prompt", "completion"}`, of `{"messages": [{"role", "content"}, …]}`, or of another known schema: JSON
    lines, also as `.gz`, a `.json` array, or parquet."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of them, at the file's end, that is held out of training and used for evaluation."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's messages are learned; `last` is for Ghost Attention (arXiv 2307.09288, Section 3.3)."""
    tokenizer: Spec = Spec(type="byte")
    """How text becomes tokens, for a new model; a saved one has its own."""


class Example(NamedTuple):
    """One demonstration as tokens."""

    tokens: list[int]
    """All of it."""
    scored: list[bool]
    """Which of the tokens are learned."""


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations to learn from, and those held out.

    Attributes:
        tokenizer: what turned them into tokens.
        train: the first of them.
        held_out: the rest.
    """

    tokenizer: Tokenizer
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @classmethod
    def of(
        cls,
        records: Sequence[CompletionRecord | Dialogue],
        tokenizer: Tokenizer,
        context: int,
        settings: DemonstrationConfig,
    ) -> Self:
        """Tokenize demonstrations and split them; at least one is held out.

        A text ends with `eos` if the tokenizer has one, which is learned too.

        Raises:
            DataError: one cannot be encoded, a dialogue has nothing to learn, or there are fewer than two.
            ContextError: one is longer than the context.
        """
        template = settings.chat_template(records, tokenizer)
        examples: list[Example] = []
        for name, record in zip(line_names(records, settings.path), records, strict=True):
            try:
                example = _encoded(record, tokenizer, template, settings.turns)
            except AxonError as error:
                raise DataError(f"{name}: {error}") from None
            if len(example.tokens) > context:
                raise ContextError(
                    f"{name} has {len(example.tokens)} tokens, but the model's context is {context}; shorten it, leave "
                    "it out, or use a model with a longer context"
                )
            examples.append(example)
        return cls(tokenizer, *split_records(examples, settings.held_out, "demonstrations", settings.validation))

    @property
    def digest(self) -> str:
        """A checksum that changes with the demonstrations or their tokens."""
        return digest(self.train, self.held_out)


def _encoded(
    record: CompletionRecord | Dialogue,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    turns: Literal["all", "last"],
) -> Example:
    if isinstance(record, CompletionRecord):
        prompt, (completion,) = encode_replies(record.prompt, [(record.completion, True)], tokenizer, template)
        return Example(prompt + completion, [False] * len(prompt) + [True] * len(completion))
    if record.messages[-1].role != "assistant":
        raise DataError("a dialogue must end with the assistant's message; remove the last one, or add its answer")
    if template is None:
        raise DataError("a dialogue needs a chat template, got none; choose one, as in data.template")
    tokens, spans = answers(template, tokenizer, record.messages)
    scored = [False] * len(tokens)
    for begin, end in spans[-1:] if turns == "last" else spans:
        scored[begin:end] = [True] * (end - begin)
    return Example(tokens, scored)
