"""Prompts to respond to: read, checked, and visited in an order that can be entered at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, Field, model_validator

from axon_core import config
from axon_core.config import Spec, validate
from axon_core.errors import ConfigError, ContextError, DataError
from axon_core.records import Text, read_json_lines
from axon_core.tokenizer import Tokenizer

__all__ = ["Prompt", "PromptConfig", "PromptData", "read_prompts"]


class PromptConfig(config.Config):
    """The `[data]` table of a recipe whose data are prompts."""

    path: str | None = None
    """A file of JSON lines, each with a `prompt`; other fields, such as a `completion`, are passed over."""
    prompts: tuple[Text, ...] = ()
    """The prompts themselves, where they are few."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Which part of the prompts, at their end, is kept from training and used for evaluation."""
    tokenizer: Spec = Spec(type="byte")
    """How text becomes tokens, for a new policy; a saved one brings its own."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (not self.prompts):
            raise ValueError("give either path, a file of JSON lines, or prompts")
        return self


class _Line(BaseModel, strict=True):
    prompt: Text


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    text: str
    """What it says."""
    tokens: tuple[int, ...]
    """Its tokens."""
    name: str
    """What to call it in a message: `line 3 of prompts.jsonl`."""


def read_prompts(settings: PromptConfig) -> list[tuple[str, str]]:
    """Return the name and the text of each prompt.

    Raises:
        DataError: the file cannot be read or is empty, or a line has no prompt.
    """
    if settings.path is None:
        return [(f"prompt {i}", text) for i, text in enumerate(settings.prompts)]
    named: list[tuple[str, str]] = []
    for place, line in read_json_lines(settings.path):
        try:
            named.append((place, validate(_Line, line).prompt))
        except ConfigError as error:
            raise DataError(f"{place} is no prompt: {error}; correct the line, or remove it") from None
    if not named:
        raise DataError(f"{settings.path} holds no prompt; write one a line")
    return named


@dataclass(frozen=True)
class PromptData:
    """Prompts to train on, and prompts held out.

    Attributes:
        tokenizer: what turned them into tokens.
        train: the first part.
        held_out: the rest; may be empty.
    """

    tokenizer: Tokenizer
    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, named: Sequence[tuple[str, str]], tokenizer: Tokenizer, held_out: float = 0.0) -> Self:
        """Make them of pairs of a name and a text. Raises `DataError` where one cannot be encoded."""
        prompts = list[Prompt]()
        for name, text in named:
            try:
                tokens = tuple(tokenizer.encode_prompt(text))
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            if not tokens:
                raise DataError(f"{name} is empty; a model needs at least one token to go on from")
            prompts.append(Prompt(text, tokens, name))
        kept = len(prompts) - int(len(prompts) * held_out)
        return cls(tokenizer, tuple(prompts[:kept]), tuple(prompts[kept:]))

    def check_context(self, context: int, new: int, whose: str) -> None:
        """Raise `ContextError`, naming the prompt, where one and `new` more tokens are too long for a model."""
        for prompt in (*self.train, *self.held_out):
            if len(prompt.tokens) + new > context:
                raise ContextError(
                    f"{prompt.name} has {len(prompt.tokens)} tokens and its response up to {new}, but the {whose}'s "
                    f"context is {context}; shorten the prompt, leave it out, or lower trainer.response_tokens"
                )
