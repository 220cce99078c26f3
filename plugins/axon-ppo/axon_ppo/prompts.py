"""Prompts to respond to: read, checked, and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from axon_core import expanded
from axon_core.checkpoint import digest
from axon_core.registry import Spec
from axon_core.text import (
    ChatTemplate,
    EncodedPrompt,
    Prompt,
    PromptRecord,
    RowsConfig,
    Text,
    Tokenizer,
    encode_prompts,
    line_names,
    read_prompt_records,
)

__all__ = ["PromptConfig", "PromptData"]


class PromptConfig(RowsConfig):
    """The `[data]` table of a recipe whose data are prompts."""

    path: str | None = None
    """Rows with a `prompt`, a text or messages, or of another known schema, of which the prompts are read: JSON lines,
    also as `.gz`, a `.json` array, or parquet."""
    prompts: tuple[Text, ...] = ()
    """The prompts themselves, if they are few."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """The share of the prompts, at their end, that is held out of training and used for evaluation."""
    tokenizer: Spec = Spec(type="byte")
    """How text becomes tokens, for a new policy; a saved one has its own."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (not self.prompts):
            raise ValueError("give either path, a file of JSON lines, or prompts")
        return self

    def read(self) -> list[tuple[str, PromptRecord]]:
        """Return the prompts, each after what to call it in a message; raises as `read_prompt_records` does."""
        if self.path is None:
            return [(f"prompt {i}", PromptRecord(prompt=text)) for i, text in enumerate(self.prompts)]
        records = read_prompt_records(self.path, self)
        return [*zip(line_names(records, expanded(self.path)), records, strict=True)]


@dataclass(frozen=True)
class PromptData:
    """Prompts to train on, and prompts held out.

    Attributes:
        tokenizer: what turned them into tokens.
        train: the first part.
        held_out: the rest; may be empty.
    """

    tokenizer: Tokenizer
    train: tuple[EncodedPrompt, ...]
    held_out: tuple[EncodedPrompt, ...] = ()

    @classmethod
    def of(
        cls,
        named: Sequence[tuple[str, Prompt]],
        tokenizer: Tokenizer,
        held_out: float = 0.0,
        template: ChatTemplate | None = None,
        validation: float | None = None,
    ) -> Self:
        """Build the data from pairs of a name and a prompt. Raises `DataError` if one cannot be encoded.

        With `validation`, the share held out is left out, and the rest is split by that share.
        """
        if validation is not None:
            named, held_out = named[: len(named) - int(len(named) * held_out)], validation
        prompts = encode_prompts(named, tokenizer, template)
        kept = len(prompts) - int(len(prompts) * held_out)
        return cls(tokenizer, prompts[:kept], prompts[kept:])

    @property
    def digest(self) -> str:
        """A checksum that changes with the prompts or their tokens."""
        return digest(*([[prompt.text, prompt.tokens] for prompt in part] for part in (self.train, self.held_out)))
