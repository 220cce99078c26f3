"""Files of rows as records: recognised, renamed, checked, with one line about what was ignored."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

from axon_core.config import validate
from axon_core.errors import ConfigError, DataError
from axon_core.escaping import shortened
from axon_core.paths import expanded
from axon_core.text.records import (
    Comparison,
    CompletionRecord,
    Dialogue,
    Feedback,
    PromptRecord,
    Ranking,
    Records,
    kind_name,
)
from axon_core.text.schemas.messages import MESSAGE_FIELDS
from axon_core.text.schemas.recognise import Recogniser, listed_fields
from axon_core.text.schemas.rows import DataRow, data_rows
from axon_core.text.schemas.schema import PURPOSES, Purpose, RowSchema
from axon_core.text.schemas.table import RowsConfig

__all__ = ["read_comparisons", "read_demonstrations", "read_feedback", "read_prompt_records"]

_log = logging.getLogger("axon")


def read_demonstrations(path: Path | str, how: RowsConfig | None = None) -> Records[CompletionRecord | Dialogue]:
    """Return the demonstrations in a file of any known schema, all of the first row's.

    A file is JSON lines, a JSON array or parquet (`data_rows`). Fields that its schema does not have are ignored; one
    warning names them.

    Args:
        path: the file; `~` and `$VARIABLES` are filled in.
        how: names of the fields, the schema, and whether invalid rows are left out; by default all is recognised.

    Raises:
        DataError: the file cannot be read or is empty, or a row is of no schema, of several, of another one than the
            first, or breaks a rule of its schema.
        UsageError: the file is a table, and pyarrow is not installed.
    """
    return _read(path, how, "demonstration")


def read_comparisons(path: Path | str, how: RowsConfig | None = None) -> Records[Comparison | Ranking]:
    """Return the comparisons or rankings in a file of any known schema. Raises `DataError` as `read_demonstrations`."""
    return _read(path, how, "preference")


def read_feedback(path: Path | str, how: RowsConfig | None = None) -> Records[Feedback]:
    """Return the answers in a file, each desirable or not. Raises `DataError` as `read_demonstrations` does."""
    return _read(path, how, "feedback")


def read_prompt_records(path: Path | str, how: RowsConfig | None = None) -> Records[PromptRecord]:
    """Return the prompts in a file of any known schema. Raises `DataError` as `read_demonstrations` does."""
    return _read(path, how, "prompt")


def _read(path: Path | str, how: RowsConfig | None, purpose: Purpose) -> Records[Any]:
    how = how or RowsConfig()
    unit, rows = data_rows(path)
    records, skipped, example = Records[Any](unit), 0, ""
    checked = _Rows(rows, Recogniser(purpose, how.fields, how.format), purpose)
    for schema, row in _assembled(iter(checked), expanded(path)):
        made = schema.gives[purpose]
        try:
            for values in made.values(row.fields):
                records.add(row.number, validate(made.kind, values))
        except (ConfigError, ValueError) as error:
            problem = f"{row.place} is not a valid {kind_name(made.kind)}: {error}"
            if not how.skip_invalid:
                raise DataError(f"{problem}; correct the {unit}, or remove it") from None
            skipped, example = skipped + 1, example or problem
    if checked.ignored:
        _log.warning("%s: %s ignored; the schema is %s", expanded(path), listed_fields(checked.ignored), checked.schema)
    if skipped:
        _log.warning("%s: %d invalid rows left out, first %s", expanded(path), skipped, shortened(example, 300))
    if not records:
        what = f"no {PURPOSES[purpose]}" if checked.schema else "no records"
        raise DataError(f"{expanded(path)} has {what}; write one row per line, such as {_EXAMPLES[purpose]}")
    return records


_EXAMPLES: Mapping[Purpose, str] = {
    "demonstration": '{"prompt": …, "completion": …}',
    "preference": '{"prompt": …, "chosen": …, "rejected": …}',
    "feedback": '{"prompt": …, "completion": …, "label": true}',
    "prompt": '{"prompt": …}',
}


class _Rows:
    """The rows of a file under Axon's names, each checked to be read as the first is.

    Attributes:
        schema: the schema, once the first row is read.
        ignored: the fields that were ignored so far.
    """

    def __init__(self, rows: Iterable[DataRow], recogniser: Recogniser, purpose: Purpose) -> None:
        self._rows, self._recogniser = rows, recogniser
        self._purpose: Purpose = purpose
        self.schema: RowSchema | None = None
        self.ignored: dict[str, None] = {}

    def __iter__(self) -> Generator[tuple[RowSchema, DataRow]]:
        first = ""
        for row in self._rows:
            fields = self._recogniser.renamed(row)
            schema = self._recogniser.schema(fields, row.place)
            if self.schema is None:
                self.schema, first = schema, row.place
            elif schema.gives[self._purpose] is not self.schema.gives[self._purpose]:
                raise DataError(
                    f"{row.place} is of the schema {schema}, but {first} of {self.schema}; give a file whose rows are "
                    "of one schema"
                )
            self.ignored |= dict.fromkeys(_ignored(fields, schema))
            yield schema, row._replace(fields=fields)


def _ignored(fields: Mapping[str, Any], schema: RowSchema) -> Iterator[str]:
    """Yield the fields of a row, and of the messages in it, that are not read."""
    for name, value in fields.items():
        if name not in schema.fields:
            yield name
        elif isinstance(value, list):
            tables = [item for item in cast("list[object]", value) if isinstance(item, Mapping)]
            for table in cast("list[Mapping[str, object]]", tables):
                unread = (key for key in table.keys() - MESSAGE_FIELDS if table[key] is not None)
                yield from (f"{name}.{key}" for key in sorted(unread))


def _assembled(rows: Iterator[tuple[RowSchema, DataRow]], file: Path) -> Iterator[tuple[RowSchema, DataRow]]:
    """Yield the rows, or what the schema makes of all of them together."""
    if (first := next(rows, None)) is None:
        return
    schema = first[0]
    given = chain([first], rows)
    if schema.assemble is None:
        yield from given
        return
    try:
        yield from ((schema, row) for row in schema.assemble(row for _, row in given))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
