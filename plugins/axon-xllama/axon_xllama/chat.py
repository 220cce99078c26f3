"""The chat format that Llama 2 was tuned with, as Meta's reference code has it (`llama/generation.py`).

A conversation is a sequence of turns, each between `bos` and `eos`; the last one is open, for the model to continue:

    <s>[INST] <<SYS>>
    {system}
    <</SYS>>

    {user} [/INST] {assistant} </s><s>[INST] {user} [/INST]

`<s>` and `</s>` stand for token ids, which no text encodes to; the other markers are ordinary text. So a user who
writes them into a message could speak as the system or as the assistant; therefore they are errors there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from axon_core import DataError, UsageError
from axon_core.text import Tokenizer

__all__ = ["MARKERS", "ChatMessage", "chat_tokens", "chat_turns"]

MARKERS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""What no message may contain."""


class ChatMessage(NamedTuple):
    """Who says what."""

    role: Literal["system", "user", "assistant"]
    """`system` comes first or not at all; then `user` and `assistant` take turns."""
    content: str
    """What is said."""


def chat_turns(messages: Sequence[ChatMessage]) -> list[str]:
    """Return the text of each turn; the last holds the user's message alone. Nothing is encoded yet.

    Raises:
        UsageError: the roles do not take turns, the last message is not the user's, or a message contains a marker.
    """
    for number, message in enumerate(messages, 1):
        if found := [marker for marker in MARKERS if marker in message.content]:
            raise UsageError(
                f"message {number} ({message.role}) contains {found[0]}, which marks parts of a conversation; "
                "rephrase it"
            )
    system, said = "", list(messages)
    if said and said[0].role == "system":
        system = f"<<SYS>>\n{said.pop(0).content}\n<</SYS>>\n\n"
    for i, message in enumerate(said):
        expected = "assistant" if i % 2 else "user"
        if message.role != expected:
            number = i + 1 + len(messages) - len(said)
            raise UsageError(f"message {number} must be of role {expected!r}, got {message.role!r}")
    if len(said) % 2 == 0:
        raise UsageError("a conversation for the model to continue must end with a message of role 'user'")
    # The reference strips the first message after the system's has been put before it.
    asked = [message.content for message in said[::2]]
    asked[0] = system + asked[0]
    asked = [f"[INST] {text.strip()} [/INST]" for text in asked]
    answers = [f" {message.content.strip()} " for message in said[1::2]]
    return [question + answer for question, answer in zip(asked, [*answers, ""], strict=True)]


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Return the tokens of a conversation, ready for the model to answer; messages as for `chat_turns`.

    Raises:
        UsageError: as `chat_turns`.
        DataError: the tokenizer has no `bos` or `eos`.
    """
    if tokenizer.bos is None or tokenizer.eos is None:
        raise DataError(
            f"the chat format needs a tokenizer with bos and eos, but this one ({tokenizer.type}) lacks them; use a "
            "model that was trained with such a tokenizer"
        )
    *closed, last = chat_turns(messages)
    tokens = [token for turn in closed for token in tokenizer.encode(turn, bos=True, eos=True)]
    return tokens + tokenizer.encode(last, bos=True)
