"""What a schema is: the fields that rows have, and the records that they become, by what these are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from axon_core.text.schemas.rows import DataRow

__all__ = ["PURPOSES", "Fields", "Made", "Purpose", "RowSchema"]

Purpose = Literal["demonstration", "preference", "feedback", "prompt"]
"""What a trainer needs."""

PURPOSES: Mapping[Purpose, str] = {
    "demonstration": "demonstrations",
    "preference": "preferences",
    "feedback": "feedback",
    "prompt": "prompts",
}
"""What each is called in messages."""

Fields = Mapping[str, Any]


def _any(_: Fields) -> bool:
    return True


@dataclass(frozen=True)
class Made:
    """How a row becomes records.

    Attributes:
        kind: their class.
        values: returns the fields of each record of a row, not yet checked; raises `ValueError`, with the field first.
    """

    kind: type[BaseModel]
    values: Callable[[Fields], Iterable[Fields]]


@dataclass(frozen=True)
class RowSchema:
    """A schema of rows.

    Attributes:
        name: what it is called in recipes and messages.
        required: the fields that every row has.
        gives: how a row becomes records, by what they are for.
        optional: the fields that are read where a row has them; all others are ignored.
        fits: whether a row that has the fields is of this schema, where two schemas have the same fields.
        assemble: makes the rows that `gives` needs of a file's, where one of its rows alone is not enough.
    """

    name: str
    required: frozenset[str]
    gives: Mapping[Purpose, Made]
    optional: frozenset[str] = frozenset()
    fits: Callable[[Fields], bool] = field(default_factory=lambda: _any)
    assemble: Callable[[Iterable[DataRow]], Iterator[DataRow]] | None = None

    @property
    def fields(self) -> frozenset[str]:
        """All fields that are read."""
        return self.required | self.optional

    def matches(self, row: Fields) -> bool:
        """Return whether a row is of this schema."""
        return self.required <= row.keys() and self.fits(row)

    def __str__(self) -> str:
        """Its name and fields, for messages."""
        return f"{self.name} ({', '.join(sorted(self.required))})"
