r"""Dialogues that are written out as one text, cut at the marks of their speakers.

Spaces and newlines around a message belong to the marks, not to the message.
"""

from __future__ import annotations

import re

from axon_core.escaping import shortened
from axon_core.text.schemas.messages import RawMessage, message

__all__ = ["by_headings", "by_instructions", "by_speakers", "has_headings", "has_instructions", "has_speakers"]

_HEADING = re.compile(r"\s*###[ ]?(Human|Assistant|System):")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_TURN = re.compile(r"\s*(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=</s>|<s>|\[INST\]|$)(?:\s*</s>)?", re.DOTALL)
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>(.*)", re.DOTALL)


def has_headings(text: object) -> bool:
    """Return whether a text is a dialogue such as `### Human: Hi ### Assistant: Hello`."""
    return isinstance(text, str) and bool(_HEADING.match(text))


def has_instructions(text: object) -> bool:
    """Return whether a text is a dialogue such as `<s>[INST] Hi [/INST] Hello </s>`."""
    return isinstance(text, str) and bool(re.match(r"\s*(<s>)?\s*\[INST\]", text))


def has_speakers(text: object) -> bool:
    r"""Return whether a text is a dialogue such as `\n\nHuman: Hi\n\nAssistant: Hello`."""
    return isinstance(text, str) and bool(_SPEAKER.match(text.lstrip()))


def by_headings(text: str) -> list[RawMessage]:
    """Return the messages between the marks `### Human:`, `### Assistant:` and `### System:`.

    >>> by_headings("### Human: Hi### Assistant: Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    return _cut(_HEADING, text)


def by_speakers(text: str) -> list[RawMessage]:
    r"""Return the messages between the marks `\n\nHuman:` and `\n\nAssistant:`.

    >>> by_speakers("\n\nHuman: Hi\n\nAssistant: Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    return _cut(_SPEAKER, text.lstrip())


def by_instructions(text: str) -> list[RawMessage]:
    """Return messages between `[INST]` and `[/INST]`, the answers, and the system's between `<<SYS>>` and `<</SYS>>`.

    >>> by_instructions("<s>[INST] Hi [/INST] Hello </s>")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]

    Raises:
        ValueError: something stands outside of the marks.
    """
    found, at = list[RawMessage](), 0
    for turn in _TURN.finditer(text):
        if rest := text[at : turn.start()].strip():
            raise ValueError(f"text: {shortened(repr(rest), 60)} stands between two turns")
        asked, answered = turn[1], turn[2].strip()
        if not found and (system := _SYSTEM.match(asked)):
            found.append(message("system", system[1].strip()))
            asked = system[2]
        found.append(message("user", asked.strip()))
        found += [message("assistant", answered)] if answered else []
        at = turn.end()
    if rest := text[at:].strip():
        raise ValueError(f"text: {shortened(repr(rest), 60)} follows the last turn")
    return found


def _cut(mark: re.Pattern[str], text: str) -> list[RawMessage]:
    """Return the messages that begin at a mark, which is named after its speaker."""
    marks = [*mark.finditer(text)]
    ends = [*(found.start() for found in marks[1:]), len(text)]
    return [message(found[1].lower(), text[found.end() : end].strip()) for found, end in zip(marks, ends, strict=True)]
