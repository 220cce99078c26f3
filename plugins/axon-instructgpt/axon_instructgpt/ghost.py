"""Ghost Attention: demonstrations of an instruction that holds for a whole dialogue (arXiv 2307.09288, Section 3.3).

An answer is sampled from a dialogue in which the instruction comes before every message of the user, and learned in one
in which it comes only before the first. The turns before the answer are the old ones and have no loss: train with the
trainer `sft` and `turns = "last"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axon_core import DataError, UsageError, validate
from axon_core.text import Dialogue, Message

__all__ = ["ghost_demonstration", "instructed"]


def instructed(messages: Sequence[Message], instruction: str, *, first_only: bool = False) -> list[Message]:
    """Return the messages with the instruction, as a paragraph, before each of the user's, or before the first."""
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    chosen = set(users[:1] if first_only else users)
    return [
        Message(role=message.role, content=f"{instruction}\n\n{message.content}") if i in chosen else message
        for i, message in enumerate(messages)
    ]


def ghost_demonstration(
    messages: Sequence[Message], instruction: str, answer: Callable[[list[Message]], str]
) -> Dialogue:
    """Return a dialogue of which only the last message is to be learned.

    Args:
        messages: a dialogue that ends with the user's message.
        instruction: what to respect throughout, such as "Answer in verse."
        answer: samples the latest model's answer to a dialogue.

    Raises:
        UsageError: the dialogue does not end with the user's message.
        DataError: the answer is empty.
        ConfigError: the speakers do not take turns.
    """
    if not messages or messages[-1].role != "user":
        last = messages[-1].role if messages else "nobody"
        raise UsageError(f"a dialogue to answer must end with the user's message, but this one ends with {last}'s")
    text = answer(instructed(messages, instruction))
    if not text:
        asked = messages[-1].content[:40]
        raise DataError(f"the answer to {asked!r} must have at least one character, got ''; sample another")
    said = Message(role="assistant", content=text)
    return validate(Dialogue, {"messages": [*instructed(messages, instruction, first_only=True), said]})
