"""Records of what to learn from: JSON lines, each checked against its kind, with the line named if it is wrong.

{"prompt": "2 + 2 ="}
{"prompt": "2 + 2 =", "completion": " 4"}
{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "margin": 1.0}
{"prompt": "2 + 2 =", "responses": [" 5", " 4", " four"], "ranking": [1, 2, 0]}
{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from axon_core.config import Config, validate
from axon_core.documents import gunzipped, not_utf8, parse_json
from axon_core.errors import ConfigError, DataError
from axon_core.escaping import shortened
from axon_core.folders import refuse_folder
from axon_core.paths import expanded

__all__ = [
    "Comparison",
    "CompletionRecord",
    "Dialogue",
    "Message",
    "PromptRecord",
    "Ranking",
    "Records",
    "Text",
    "line_names",
    "read_json_lines",
    "read_prompts",
    "read_records",
    "split_records",
]

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

Text = Annotated[str, Field(min_length=1)]
"""A text of at least one character."""


class _Record(Config):
    model_config = ConfigDict(strict=True)  # a number is not a text, and "1" is not a number


class PromptRecord(_Record):
    """A prompt; other fields of its line, such as a completion, are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Text
    """The text to continue."""


class CompletionRecord(_Record):
    """A prompt, and how it should continue."""

    prompt: Text
    """What the text begins with."""
    completion: Text
    """What should follow."""


class Comparison(_Record):
    """A prompt and two continuations, of which the first was preferred."""

    prompt: Text
    """What both texts begin with."""
    chosen: Text
    """The continuation that was preferred."""
    rejected: Text
    """The other one."""
    margin: float = Field(default=0.0, ge=0)
    """By how much, on the data's own scale; 0 if nobody said."""
    unfinished: Annotated[tuple[Literal["chosen", "rejected"], ...], Field(strict=False)] = ()
    """Which of them were cut off before their end, so that no end-of-text token follows."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected must differ, but both are {shortened(repr(self.chosen), 60)}")
        return self


class Ranking(_Record):
    """A prompt and several continuations, ranked."""

    prompt: Text
    """What all texts begin with."""
    responses: Annotated[tuple[Text, ...], Field(min_length=2, strict=False)]
    """The continuations."""
    ranking: Annotated[tuple[int, ...], Field(strict=False)]
    """Their numbers, counted from 0, the best first."""
    unfinished: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """The numbers of those that were cut off before their end, so that no end-of-text token follows."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        k = len(self.responses)
        if sorted(self.ranking) != list(range(k)):
            raise ValueError(f"ranking must list each of 0 … {k - 1} once, the best first, got {list(self.ranking)}")
        if unknown := [i for i in self.unfinished if i not in self.ranking]:
            raise ValueError(f"unfinished must list numbers of responses, 0 … {k - 1}, got {unknown[0]}")
        if twice := next((text for text in self.responses if self.responses.count(text) > 1), None):
            raise ValueError(f"responses must differ, but two are {shortened(repr(twice), 60)}")
        return self

    def pairs(self) -> list[tuple[int, int]]:
        """Return the numbers of the better and the worse response of all K (K − 1) / 2 pairs, the best first."""
        return list(combinations(self.ranking, 2))


class Message(_Record):
    """One message of a dialogue."""

    role: Literal["system", "user", "assistant"]
    """Whose it is."""
    content: Text
    """What it says."""


class Dialogue(_Record):
    """A dialogue: a system's message, if any, then user and assistant in turn, beginning with the user."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, strict=False)]
    """The messages in their order."""

    @model_validator(mode="after")
    def _alternating(self) -> Self:
        roles = [message.role for message in self.messages]
        begin = roles[0] == "system"
        for i, role in enumerate(roles[begin:], begin):
            if role != (expected := ("user", "assistant")[(i - begin) % 2]):
                raise ValueError(f"message {i + 1} must be the {expected}'s, because the two take turns, got {role!r}")
        if begin and len(roles) == 1:
            raise ValueError("a user's message must follow the system's, got none")
        return self


class Records(list[R]):
    """The records of a file, and the number of each one's line, counted from 1: blank lines hold none."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []

    def add(self, line: int, record: R) -> None:
        """Append the record of a line."""
        self.append(record)
        self.lines.append(line)


def line_names(records: Sequence[object], path: Path | str) -> list[str]:
    """Return what to call each record of a file in a message, `line 3 of path`; records from elsewhere are numbered."""
    lines = records.lines if isinstance(records, Records) else range(1, len(records) + 1)
    return [f"line {line} of {path}" for line in lines]


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
    for number, place, value in _lines(path):
        try:
            records.add(number, validate(kind, value))
        except ConfigError as error:
            strange = not all(name in value for name, field in kind.model_fields.items() if field.is_required())
            remedy = "use these field names in every line" if strange else "correct the line, or remove it"
            what = re.findall("[A-Z][a-z]+", kind.__name__.removesuffix("Record"))[-1].lower()
            raise DataError(f"{place} is not a valid {what}: {error}; {remedy}") from None
    if not records:
        raise DataError(f"{path} has no records; write one per line: {', '.join(map(repr, kind.model_fields))}")
    return records


def read_prompts(path: Path | str) -> list[tuple[str, str]]:
    """Return the prompts in a file of JSON lines, each preceded by its name for messages; see `read_records`."""
    records = read_records(path, PromptRecord)
    return [*zip(line_names(records, expanded(path)), (record.prompt for record in records), strict=True)]


def read_json_lines(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object in each line of a file, or of a `.gz` file, preceded by the line's name for messages.

    Blank lines are skipped.

    Raises:
        DataError: the path is a folder's, the file cannot be read or unpacks to far more than its size, or a line is
            not UTF-8 text, is not a JSON object, or has a field twice.
    """
    for _, place, value in _lines(path):
        yield place, value


def _lines(path: Path | str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    file, number = expanded(path), 0
    refuse_folder(file, "a file of JSON lines")
    try:
        with io.BytesIO(gunzipped(file)) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                place = f"line {number} of {file}"
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield number, place, _object(line, place)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read {file} after line {number}: {reason}") from None


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = parse_json(line.decode("utf-8-sig"), int, object_pairs_hook=_fields, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(place, error)) from None
    except _Twice as error:
        raise DataError(f"{place} has the field {error.args[0]!r} twice; remove one of them") from None
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}; write one object per line") from None
    if not isinstance(value, dict):
        raise DataError(f'{place} must be a JSON object such as {{"prompt": …}}, got {shortened(repr(value), 60)}')
    return value  # pyright: ignore[reportUnknownVariableType]


class _Twice(ValueError):
    """An object has a field twice."""


def _no_number(name: str) -> None:
    """Refuse `NaN` and `Infinity`, which Python's reader accepts as numbers."""
    raise ValueError(f"{name} is not a number")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _Twice(name)
        fields[name] = value
    return fields


def split_records(items: Sequence[T], held_out: float, what: str) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Return the first of them to train on, and the share `held_out` at their end, at least one each.

    `what` names the items in the plural. Raises `DataError` if there are fewer than two.
    """
    if len(items) < 2:
        raise DataError(f"there must be at least 2 {what}, one to train on and one held out, got {len(items)}")
    cut = min(max(1, round(len(items) * (1 - held_out))), len(items) - 1)
    return tuple(items[:cut]), tuple(items[cut:])
