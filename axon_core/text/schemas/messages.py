"""Messages as public data have them, turned into Axon's roles and contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from axon_core.escaping import shortened

__all__ = ["MESSAGE_FIELDS", "is_list", "message", "messages", "paragraphs", "reply", "without_prompt"]

MESSAGE_FIELDS = frozenset({"role", "content", "from", "value"})
"""The fields of a message that are read; `from` and `value` are ShareGPT's names for `role` and `content`."""

_ROLES = {
    **{"human": "user", "user": "user", "prompter": "user"},
    **{"gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"},
    **{"system": "system", "developer": "system"},
}

RawMessage = dict[str, Any]
"""A message as a table of `role` and `content`, not yet checked."""


def is_list(value: object) -> bool:
    """Return whether a field holds messages rather than a text."""
    return isinstance(value, list | tuple)


def message(role: object, content: object) -> RawMessage:
    """Return a message with Axon's name of its role; roles without one, such as `tool`, are refused later."""
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": _joined(content)}


def messages(value: object, field: str) -> list[RawMessage]:
    """Return the messages in a field: tables of `role` and `content`, or of `from` and `value`.

    Raises:
        ValueError: it is no list of such tables.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field}: must be a list of messages, got {shortened(repr(value), 60)}")
    return [_one(item, f"{field}.{i}") for i, item in enumerate(cast("Sequence[object]", value))]


def reply(value: object, field: str) -> object:
    """Return the text of a field that holds a text, or exactly one message, the assistant's.

    Raises:
        ValueError: it holds other messages.
    """
    if not is_list(value):
        return value
    found = messages(value, field)
    if [one["role"] for one in found] != ["assistant"]:
        roles = shortened(", ".join(str(one["role"]) for one in found) or "none", 80)
        raise ValueError(f"{field}: after the prompt there must be one message, the assistant's, got {roles}")
    return found[0]["content"]


def without_prompt(value: object, prompt: Sequence[RawMessage], field: str) -> object:
    """Return what messages hold after those of a prompt, which they may repeat."""
    if not is_list(value):
        return value
    found = messages(value, field)
    return found[len(prompt) :] if found[: len(prompt)] == [*prompt] else found


def paragraphs(*texts: object) -> object:
    """Return texts as paragraphs, without those that are missing or blank; what is no text is refused later."""
    if wrong := [text for text in texts if text is not None and not isinstance(text, str)]:
        return wrong[0]
    return "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())


def _one(item: object, place: str) -> RawMessage:
    if not isinstance(item, Mapping):
        raise ValueError(f"{place}: must be a message, got {shortened(repr(item), 60)}")
    table = cast("Mapping[str, object]", item)
    names = ("role", "content") if "role" in table else ("from", "value")
    if missing := [name for name in names if name not in table]:
        raise ValueError(f"{place}: a message must have {' and '.join(names)}, but has no {missing[0]}")
    return message(*(table[name] for name in names))


def _joined(content: object) -> object:
    """Return the text of OpenAI's list of parts, if all parts are texts."""
    if not isinstance(content, list):
        return content
    parts = [cast("Mapping[str, object]", part) for part in cast("list[object]", content) if isinstance(part, Mapping)]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    whole = len(texts) == len(cast("list[object]", content)) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if whole else cast("object", content)
