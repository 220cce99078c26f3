"""Which schema a row is of; a row of none, or of several, is an error that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from axon_core.errors import DataError
from axon_core.escaping import printable, shortened
from axon_core.text.records import kind_name
from axon_core.text.schemas.known import SCHEMAS
from axon_core.text.schemas.rows import DataRow
from axon_core.text.schemas.schema import PURPOSES, Purpose, RowSchema

__all__ = ["Recogniser", "listed_fields"]

_NAMED = 12
"""How many fields a message names before it counts the rest."""
_ALIASES: Mapping[str, Collection[str]] = {
    "prompt": ("question", "query", "instruction", "input", "problem", "user"),
    "completion": ("answer", "response", "output", "reply", "solution", "assistant"),
    "chosen": ("accepted", "preferred", "better", "winner", "chosen_response", "response_a"),
    "rejected": ("dispreferred", "worse", "loser", "rejected_response", "response_b"),
    "messages": ("conversation", "conversations", "dialogue", "dialog", "turns", "chat"),
    "label": ("liked", "thumbs_up", "desirable", "good"),
}
"""Names that public data have for Axon's fields."""
_PLAIN: Mapping[Purpose, tuple[str, ...]] = {
    "demonstration": ("completion", "messages"),
    "preference": ("comparison",),
    "feedback": ("feedback",),
    "prompt": ("prompt",),
}
"""The schemas that fields are mapped to."""


class Recogniser:
    """Recognises the rows of a file.

    Args:
        purpose: what the rows are for.
        fields: the rows' own names of fields, by Axon's.
        schema: the name of the only schema to consider; by default all.
    """

    def __init__(self, purpose: Purpose, fields: Mapping[str, str], schema: str | None = None) -> None:
        self._purpose: Purpose = purpose
        self._fields, self._only = fields, schema
        self._candidates = [
            one for one in SCHEMAS if one.fields >= fields.keys() and (schema is None or one.name == schema)
        ]

    @property
    def _useful(self) -> list[RowSchema]:
        """All schemas that hold what the rows are for."""
        return [one for one in SCHEMAS if self._purpose in one.gives]

    def renamed(self, row: DataRow) -> dict[str, Any]:
        """Return the fields of a row under Axon's names; a field that is null counts as absent.

        Raises:
            DataError: a field that `fields` names is missing.
        """
        values = {name: value for name, value in row.fields.items() if value is not None}
        if not self._fields:
            return values
        if missing := next(((to, name) for to, name in self._fields.items() if name not in row.fields), None):
            raise DataError(
                f"data.fields takes {missing[0]} from {shortened(repr(missing[1]), 60)}, but {row.place} has no such "
                f"field; it has {listed_fields(row.fields)}"
            )
        taken = {to: values[name] for to, name in self._fields.items() if name in values}
        others = {name: value for name, value in values.items() if name not in self._fields.values()}
        return {**others, **taken}

    def schema(self, fields: Mapping[str, Any], place: str) -> RowSchema:
        """Return the schema of a row that `renamed` returned.

        Raises:
            DataError: it is of no schema, of several, or of one that does not hold what it is for.
        """
        matching = [one for one in self._candidates if one.matches(fields)]
        found = [one for one in matching if not any(one.required < other.required for other in matching)]
        useful = [one for one in found if self._purpose in one.gives]
        if len(useful) == 1:
            return useful[0]
        if useful:
            names = " and ".join(map(str, useful))
            raise DataError(
                f"{place} is of more than one schema: {names}; choose one, as in data.format = {useful[0].name!r}"
            )
        raise DataError(self._other(found, place) if found else self._unknown(fields, place))

    def _other(self, found: Iterable[RowSchema], place: str) -> str:
        names = " and ".join(map(str, found))
        known = ", ".join(one.name for one in self._useful)
        return (
            f"{place} is of the schema {names}, which holds no {PURPOSES[self._purpose]}; give rows of another schema "
            f"({known}), or train with another trainer"
        )

    def _unknown(self, fields: Mapping[str, Any], place: str) -> str:
        known = [one for one in self._candidates if self._purpose in one.gives]
        if self._only and known:
            lacks = sorted(known[0].required - fields.keys())
            why = f"lacks {listed_fields(lacks)}" if lacks else "has these fields, but with other contents"
            return f"{place} is not of the schema {known[0]} of data.format: it {why}; it has {listed_fields(fields)}"
        nearest = max(known or self._useful, key=lambda one: (_likeness(one, fields), -len(one.required)))
        target = nearest if nearest.name in _PLAIN[self._purpose] else self._plain(fields)
        lacks = sorted(nearest.required - fields.keys())
        why = "; ".join(f"{name}: this field is required" for name in lacks) or "its contents are of another schema"
        mapping = ", ".join(f'{name} = "{_guess(name, fields)}"' for name in sorted(target.required - fields.keys()))
        remedy = f"name its fields, as in data.fields = {{ {mapping} }}" if mapping else "correct it, or remove it"
        kind = kind_name(nearest.gives[self._purpose].kind)
        return (
            f"{place} is not a valid {kind}: {why}. It has {listed_fields(fields)}, and so is of no schema with "
            f"{PURPOSES[self._purpose]}; the nearest is {nearest}; {remedy}"
        )

    def _plain(self, fields: Mapping[str, Any]) -> RowSchema:
        """Return the schema of Axon's own that the fields are most like."""
        own = [one for one in SCHEMAS if one.name in _PLAIN[self._purpose]]
        return max(own, key=lambda one: _likeness(one, fields))


def listed_fields(names: Iterable[str]) -> str:
    """Return names of fields for a message: `the fields 'a', 'b' and 3 more`.

    >>> listed_fields(["question", "answer"])
    "the fields 'question', 'answer'"
    """
    shown = [shortened(repr(printable(name)), 40) for name in names]
    if not shown:
        return "no fields"
    rest = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return f"the field{'s' * (len(shown) > 1)} {', '.join(shown[:_NAMED])}{rest}"


def _likeness(schema: RowSchema, fields: Collection[str]) -> float:
    """Return how alike the names of a schema's fields and of a row's are, from 0 to 1."""
    return sum(max((_same(name, other) for other in fields), default=0.0) for name in schema.required) / len(
        schema.required
    )


def _same(name: str, other: str) -> float:
    if name == other:
        return 1.0
    if other.lower() in _ALIASES.get(name, ()):
        return 0.9
    return SequenceMatcher(None, name, other[:64].lower()).ratio() * 0.8


def _guess(name: str, fields: Collection[str]) -> str:
    """Return the field of a row that is most likely `name`, or dots."""
    best = max(fields, key=lambda other: _same(name, other), default="…")
    return shortened(printable(best, line=True), 40) if _same(name, best) > 0.4 else "…"
