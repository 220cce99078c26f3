"""Prompts and what follows them as tokens, whether the prompt is a text or the messages of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence

from axon_core.alignment.logprobs import encode_completion
from axon_core.text.chat_template import ChatTemplate
from axon_core.text.prompts import encode_asked
from axon_core.text.records import Message, Prompt
from axon_core.text.tokenizer import Tokenizer

__all__ = ["encode_replies"]


def encode_replies(
    prompt: Prompt,
    replies: Sequence[tuple[str, bool]],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt, and of each reply to it with whatever marks its end.

    After a text, replies are encoded by `encode_completion`. After messages, a reply is the assistant's next message,
    and its ids are those that the answered dialogue has after the open one. Where a tokenizer joins the last letters of
    the open dialogue and the first of a reply into one token, that token is the reply's, of all replies alike.

    Args:
        prompt: what comes before each.
        replies: the texts, and whether each is finished; one that is not has no end-of-text token after it.
        tokenizer: the model's.
        template: what renders messages.

    Raises:
        DataError: a text cannot be encoded.
        UsageError: see `encode_asked`.
    """
    asked = encode_asked(prompt, tokenizer, template)
    if isinstance(prompt, str):
        return asked, [encode_completion(tokenizer, text, finished=finished) for text, finished in replies]
    whole = [
        encode_asked((*prompt, Message(role="assistant", content=text)), tokenizer, template) for text, _ in replies
    ]
    begin = min((_alike(asked, answered) for answered in whole), default=len(asked))
    return asked[:begin], [answered[begin:] for answered in whole]


def _alike(asked: Sequence[int], answered: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    pairs = enumerate(zip(asked, answered, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(asked), len(answered)))
