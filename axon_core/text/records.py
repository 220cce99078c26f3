"""Records of what to learn from: JSON lines, each checked against its kind, with the line named if it is wrong.

{"prompt": "2 + 2 ="}
{"prompt": "2 + 2 =", "completion": " 4"}
{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "margin": 1.0}
{"prompt": "2 + 2 =", "responses": [" 5", " 4", " four"], "ranking": [1, 2, 0]}
{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "rater": "Ada"}
{"prompt": "2 + 2 =", "completion": " 4", "label": true}
{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

A prompt may also be messages, `[{"role": "user", "content": "2 + 2?"}]`: a chat template renders it and the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WrapValidator, model_validator

from axon_core.config import Config, validate
from axon_core.errors import ConfigError, DataError
from axon_core.escaping import shortened
from axon_core.paths import expanded
from axon_core.text.json_rows import json_lines, read_json_lines

__all__ = [
    "Comparison",
    "CompletionRecord",
    "Dialogue",
    "Feedback",
    "Message",
    "Prompt",
    "PromptRecord",
    "Ranking",
    "Records",
    "Text",
    "kind_name",
    "line_names",
    "prompt_texts",
    "read_json_lines",
    "read_prompts",
    "read_records",
    "split_records",
]

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

Text = Annotated[str, Field(min_length=1)]
"""A text of at least one character."""


Rater = Annotated[str, Field(min_length=1, max_length=200)]
"""The name of who gave a preference, at most 200 characters."""


class _Record(Config):
    model_config = ConfigDict(strict=True)  # a number is not a text, and "1" is not a number

    def texts(self) -> list[str]:
        """Return its texts in their order."""
        return [text for name in _TEXTS for text in prompt_texts(getattr(self, name, ()))]


class Message(_Record):
    """One message of a dialogue."""

    role: Literal["system", "user", "assistant"]
    """Whose it is."""
    content: Text
    """What it says."""


_TEXT = TypeAdapter[str](Text, config=ConfigDict(strict=True))
_MESSAGES = TypeAdapter[tuple[Message, ...]](Annotated[tuple[Message, ...], Field(min_length=1, strict=False)])


def _text_or_messages(value: Any, _: Any) -> str | tuple[Message, ...]:
    """Return a prompt of either kind, checked by the rules of that kind alone, so that an error names those."""
    if not isinstance(value, list | tuple):
        return _TEXT.validate_python(value)
    messages = _MESSAGES.validate_python(value)
    _check_turns(messages)
    if messages[-1].role != "user":
        raise ValueError("the messages of a prompt must end with the user's, got the assistant's; remove the last one")
    return messages


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages]
    begin = roles[0] == "system"
    for i, role in enumerate(roles[begin:], begin):
        if role != (expected := ("user", "assistant")[(i - begin) % 2]):
            raise ValueError(f"message {i + 1} must be the {expected}'s, because the two take turns, got {role!r}")
    if begin and len(roles) == 1:
        raise ValueError("a user's message must follow the system's, got none")


Prompt = Annotated[str | tuple[Message, ...], WrapValidator(_text_or_messages)]
"""A text to continue, or the messages of a dialogue that ends with the user's."""


_TEXTS = ("prompt", "messages", "completion", "chosen", "rejected", "responses")


def prompt_texts(value: str | Sequence[Message | str]) -> list[str]:
    """Return the text of a prompt, or those of its messages."""
    texts = [value] if isinstance(value, str) else value
    return [text.content if isinstance(text, Message) else text for text in texts]


class PromptRecord(_Record):
    """A prompt; other fields of its line, such as a completion, are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt
    """What to continue, or to answer."""


class CompletionRecord(_Record):
    """A prompt, and how it should continue."""

    prompt: Prompt
    """What the text begins with."""
    completion: Text
    """What should follow."""


class Feedback(_Record):
    """A prompt, a continuation, and whether it is desirable."""

    prompt: Prompt
    """What the text begins with."""
    completion: Text
    """What follows."""
    label: bool
    """Whether that is desirable."""


class Comparison(_Record):
    """A prompt and two continuations, of which the first was preferred."""

    prompt: Prompt
    """What both texts begin with."""
    chosen: Text
    """The continuation that was preferred."""
    rejected: Text
    """The other one."""
    margin: float = Field(default=0.0, ge=0)
    """By how much, on the data's own scale; 0 if nobody said."""
    unfinished: Annotated[tuple[Literal["chosen", "rejected"], ...], Field(strict=False)] = ()
    """Which of them were cut off before their end, so that no end-of-text token follows."""
    rater: Rater | None = None
    """Who preferred it; None if nobody said."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected must differ, but both are {shortened(repr(self.chosen), 60)}")
        _check_ends(self.prompt, self.unfinished)
        return self


def _check_ends(prompt: Prompt, unfinished: Sequence[object]) -> None:
    if unfinished and not isinstance(prompt, str):
        raise ValueError("unfinished needs a prompt that is a text: a chat template ends every message")


class Ranking(_Record):
    """A prompt and several continuations, ranked."""

    prompt: Prompt
    """What all texts begin with."""
    responses: Annotated[tuple[Text, ...], Field(min_length=2, strict=False)]
    """The continuations."""
    ranking: Annotated[tuple[int, ...], Field(strict=False)]
    """Their numbers, counted from 0, the best first."""
    unfinished: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """The numbers of those that were cut off before their end, so that no end-of-text token follows."""
    rater: Rater | None = None
    """Who ranked them; None if nobody said."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        k = len(self.responses)
        if sorted(self.ranking) != list(range(k)):
            raise ValueError(f"ranking must list each of 0 … {k - 1} once, the best first, got {list(self.ranking)}")
        if unknown := [i for i in self.unfinished if i not in self.ranking]:
            raise ValueError(f"unfinished must list numbers of responses, 0 … {k - 1}, got {unknown[0]}")
        if twice := next((text for text in self.responses if self.responses.count(text) > 1), None):
            raise ValueError(f"responses must differ, but two are {shortened(repr(twice), 60)}")
        _check_ends(self.prompt, self.unfinished)
        return self

    def pairs(self) -> list[tuple[int, int]]:
        """Return the numbers of the better and the worse response of all K (K − 1) / 2 pairs, the best first."""
        return list(combinations(self.ranking, 2))


class Dialogue(_Record):
    """A dialogue: a system's message, if any, then user and assistant in turn, beginning with the user."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, strict=False)]
    """The messages in their order."""

    @model_validator(mode="after")
    def _alternating(self) -> Self:
        _check_turns(self.messages)
        return self


class Records(list[R]):
    """The records of a file, and the number of each one's line, counted from 1: blank lines hold none.

    Args:
        unit: what the numbers count, for messages: lines, or the rows of a table.
    """

    def __init__(self, unit: Literal["line", "row"] = "line") -> None:
        super().__init__()
        self.unit = unit
        self.lines: list[int] = []

    def add(self, line: int, record: R) -> None:
        """Append the record of a line."""
        self.append(record)
        self.lines.append(line)


def line_names(records: Sequence[object], path: Path | str) -> list[str]:
    """Return what to call each record of a file in a message, `line 3 of path`; records from elsewhere are numbered."""
    lines = records.lines if isinstance(records, Records) else range(1, len(records) + 1)
    unit = records.unit if isinstance(records, Records) else "line"
    return [f"{unit} {line} of {path}" for line in lines]


def read_records(path: Path | str, kind: type[R]) -> Records[R]:
    """Return the records in a file of JSON lines, or in such a file compressed as `.gz`, in their order.

    Blank lines are skipped.

    Args:
        path: the file; `~` and `$VARIABLES` are filled in.
        kind: the class of all its records, such as `Comparison`.

    Raises:
        DataError: the file cannot be read or is empty, or a line is not a record of that kind.
    """
    records = Records[R]()
    for number, place, value in json_lines(path):
        try:
            records.add(number, validate(kind, value))
        except ConfigError as error:
            strange = not all(name in value for name, field in kind.model_fields.items() if field.is_required())
            remedy = "use these field names in every line" if strange else "correct the line, or remove it"
            raise DataError(f"{place} is not a valid {kind_name(kind)}: {error}; {remedy}") from None
    if not records:
        raise DataError(f"{path} has no records; write one per line: {', '.join(map(repr, kind.model_fields))}")
    return records


def kind_name(kind: type[BaseModel]) -> str:
    """Return what a kind of records is called in messages.

    >>> kind_name(CompletionRecord)
    'completion'
    """
    return re.findall("[A-Z][a-z]+", kind.__name__.removesuffix("Record"))[-1].lower()


class _TextPrompt(PromptRecord):
    """A prompt that is a text."""

    prompt: Text
    """The text to continue."""


def read_prompts(path: Path | str) -> list[tuple[str, str]]:
    """Return the prompts in a file of JSON lines, each preceded by its name for messages; see `read_records`."""
    records = read_records(path, _TextPrompt)
    return [*zip(line_names(records, expanded(path)), (record.prompt for record in records), strict=True)]


def split_records(
    items: Sequence[T], held_out: float, what: str, validation: float | None = None
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Return the first of them to train on, and the share `held_out` at their end, at least one each.

    With `validation`, the share held out is left out, and the rest is split by that share.
    `what` names the items in the plural. Raises `DataError` if there are too few, fewer than two or three.
    """
    if validation is not None:
        items, held_out = split_records(items, held_out, what)[0], validation
    if len(items) < 2:
        raise DataError(f"there must be at least 2 {what}, one to train on and one held out, got {len(items)}")
    cut = min(max(1, round(len(items) * (1 - held_out))), len(items) - 1)
    return tuple(items[:cut]), tuple(items[cut:])
