"""A chat template for any tokenizer, and which tokens of a dialogue are the answers."""

from __future__ import annotations

from collections.abc import Sequence

from axon_core import UsageError, config
from axon_core.alignment import encode_completion
from axon_core.text import ChatTemplate, Message, Tokenizer

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}

__all__ = ["Plain", "answers"]


class Plain:
    """Every message as a paragraph after its speaker's name, for any tokenizer; `eos`, if there is one, after answers.

    Human: What is 2 + 2?

    Assistant: 4
    """

    markers = tuple(f"\n{name}:" for name in _NAMES.values())
    """What no message may contain; nor may one begin with a name and a colon."""

    class Config(config.Config):
        """There is nothing to choose."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a dialogue; see `ChatTemplate`. Raises `UsageError` if a line begins with a mark."""
        marks = [f"{name}:" for name in _NAMES.values()]
        tokens: list[int] = []
        for i, message in enumerate(messages):
            for line in message.content.splitlines():
                if mark := next((mark for mark in marks if line.startswith(mark)), None):
                    raise UsageError(
                        f"message {i + 1} ({message.role}) has a line that begins with {mark!r}, which marks a "
                        "speaker; rephrase it"
                    )
            name = f"\n\n{_NAMES[message.role]}:"
            if message.role == "assistant":
                tokens += _encode(tokenizer, name) + encode_completion(tokenizer, f" {message.content}")
            elif tokens:
                tokens += _encode(tokenizer, f"{name} {message.content}")
            else:
                tokens += tokenizer.encode_prompt(f"{name.lstrip()} {message.content}")
        if messages[-1].role == "user":
            tokens += _encode(tokenizer, f"\n\n{_NAMES['assistant']}:")
        return tokens


def answers(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return a dialogue's tokens, and where each of the assistant's messages begins and ends among them.

    An answer is what comes after the open dialogue's tokens: its text and whatever marks its end.
    """
    tokens = template(tokenizer, messages)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            asked, answered = template(tokenizer, messages[:i]), template(tokenizer, messages[: i + 1])
            # A tokenizer may join the last letters of the question and the first of the answer into one token: then
            # that token is the answer's.
            pairs = enumerate(zip(asked, answered, strict=False))
            begin = next((at for at, pair in pairs if pair[0] != pair[1]), len(asked))
            spans.append((begin, len(answered)))
    return tokens, spans


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text within a dialogue: as those of a completion, but without `eos`."""
    return encode_completion(tokenizer, text, finished=False)
