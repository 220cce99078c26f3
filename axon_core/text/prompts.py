"""Prompts to respond to, as tokens: encoded, and checked to leave room for a response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from axon_core.errors import ContextError, DataError
from axon_core.text.tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "check_room", "encode_prompts"]


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt."""

    text: str
    """What it says."""
    tokens: tuple[int, ...]
    """Its tokens."""
    name: str
    """What to call it in a message: `line 3 of prompts.jsonl`."""

    @property
    def named(self) -> tuple[str, str]:
        """Its name and its text."""
        return self.name, self.text


def encode_prompts(named: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> tuple[EncodedPrompt, ...]:
    """Return the prompts of pairs of a name and a text, such as `read_prompts` returns.

    Raises:
        DataError: one cannot be encoded, or is empty and no marker comes before it; the message names it.
    """
    prompts = list[EncodedPrompt]()
    for name, text in named:
        try:
            tokens = tuple(tokenizer.encode_prompt(text))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if not tokens:
            raise DataError(f"{name} is empty; a model needs at least one token to continue")
        prompts.append(EncodedPrompt(text, tokens, name))
    return tuple(prompts)


def check_room(prompts: Iterable[EncodedPrompt], response_tokens: int, context: int, whose: str) -> None:
    """Raise `ContextError`, naming the prompt, if one and its response are too long for a model."""
    for prompt in prompts:
        if len(prompt.tokens) + response_tokens > context:
            raise ContextError(
                f"{prompt.name} has {len(prompt.tokens)} tokens and its response up to {response_tokens}, but the "
                f"{whose}'s context is {context}; shorten the prompt, leave it out, or lower response_tokens"
            )
