"""What a chat template is: how the messages of a dialogue become tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from axon_core.registry.registry import Registry
from axon_core.text.records import Message
from axon_core.text.tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATES", "ChatTemplate"]


@runtime_checkable
class ChatTemplate(Protocol):
    """How a dialogue is written for a model: any callable; a registered one is built from its class's `Config`.

    A dialogue that ends with the user's message is left open for the model to answer; the tokens of the answered
    dialogue begin with its tokens. A template may also have `markers`, texts that no message may contain: an answer
    ends before one, because it could not be part of the next question.
    """

    def __call__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a dialogue.

        Raises:
            UsageError: a message cannot be told apart from the template's own marks.
            DataError: the tokenizer cannot encode it, or lacks a marker that the template needs.
        """
        ...


CHAT_TEMPLATES: Registry[ChatTemplate] = Registry("chat_template", ChatTemplate)
"""Chat templates by key."""
