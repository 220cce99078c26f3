"""Prompts to respond to, as tokens: encoded, and checked to leave room for a response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from axon_core.errors import AxonError, ContextError, DataError, UsageError
from axon_core.text.chat_template import ChatTemplate
from axon_core.text.records import Prompt
from axon_core.text.tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "check_room", "encode_asked", "encode_prompts"]


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt."""

    text: str
    """What it says; of messages, what their tokens say."""
    tokens: tuple[int, ...]
    """Its tokens."""
    name: str
    """What to call it in a message: `line 3 of prompts.jsonl`."""

    @property
    def named(self) -> tuple[str, str]:
        """Its name and its text."""
        return self.name, self.text


def encode_asked(prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> list[int]:
    """Return the ids of a prompt: a text by itself, messages by a chat template, left open for the answer.

    Raises:
        DataError: it cannot be encoded.
        UsageError: it has messages, and there is no template, or one of them cannot be told apart from its marks.
    """
    if isinstance(prompt, str):
        return tokenizer.encode_prompt(prompt)
    if template is None:
        raise UsageError("a prompt of messages needs a chat template, got none; choose one, as in data.template")
    return template(tokenizer, prompt)


def encode_prompts(
    named: Iterable[tuple[str, Prompt]], tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> tuple[EncodedPrompt, ...]:
    """Return the prompts of pairs of a name and a prompt, such as `read_prompts` returns.

    Args:
        named: the pairs.
        tokenizer: the model's.
        template: what renders prompts that are messages.

    Raises:
        DataError: one cannot be encoded, or is empty and no marker comes before it; the message names it.
    """
    prompts = list[EncodedPrompt]()
    for name, prompt in named:
        try:
            tokens = tuple(encode_asked(prompt, tokenizer, template))
        except AxonError as error:
            raise DataError(f"{name}: {error}") from None
        if not tokens:
            raise DataError(f"{name} is empty; a model needs at least one token to continue")
        prompts.append(EncodedPrompt(prompt if isinstance(prompt, str) else tokenizer.decode(tokens), tokens, name))
    return tuple(prompts)


def check_room(prompts: Iterable[EncodedPrompt], response_tokens: int, context: int, whose: str) -> None:
    """Raise `ContextError`, naming the prompt, if one and its response are too long for a model."""
    for prompt in prompts:
        if len(prompt.tokens) + response_tokens > context:
            raise ContextError(
                f"{prompt.name} has {len(prompt.tokens)} tokens and its response up to {response_tokens}, but the "
                f"{whose}'s context is {context}; shorten the prompt, leave it out, or lower response_tokens"
            )
