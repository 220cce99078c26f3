"""Columns and rows of parquet files, read a batch of rows at a time; needs the extra `parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axon_core.errors import DataError
from axon_core.escaping import shortened
from axon_core.registry.optional import import_optional

__all__ = ["column_values", "row_groups", "table_rows"]

_ROWS = 256


def row_groups(path: Path, field: str) -> list[int]:
    """Return the bytes that the texts of each row group take when they are unpacked.

    Raises:
        DataError: it is not a parquet file, or has no column `field` of texts.
        UsageError: pyarrow is not installed.
    """
    with _opened(path) as table:
        schema = table.schema_arrow
        if field not in schema.names:
            names = shortened(", ".join(schema.names), 200)
            raise DataError(f"{path} has no column {field!r}; its columns are {names}: choose one with --field")
        kind = str(schema.field(field).type)
        if kind not in ("string", "large_string", "string_view"):
            raise DataError(f"the column {field!r} of {path} must hold texts, but is of type {kind}; choose another")
        about = table.metadata
        column = next(i for i in range(about.num_columns) if about.schema.column(i).path == field)
        return [about.row_group(group).column(column).total_uncompressed_size for group in range(about.num_row_groups)]


def column_values(path: Path, field: str, begin: int, end: int) -> Iterator[str | None]:
    """Yield the values of a column in the row groups `begin` to `end` − 1; None stands for an empty cell.

    Raises:
        DataError: the file cannot be read.
        UsageError: pyarrow is not installed.
    """
    with _opened(path) as table:
        batches = table.iter_batches(_ROWS, row_groups=range(begin, end), columns=[field], use_threads=False)
        try:
            for batch in batches:
                yield from batch.column(0).to_pylist()
        except OSError as error:  # what pyarrow raises for damaged pages too
            raise DataError(f"cannot read {path}: {shortened(str(error), 200)}") from None


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dictionaries, a batch of them in memory at a time; None stands for an empty cell.

    Raises:
        DataError: the file cannot be read.
        UsageError: pyarrow is not installed.
    """
    with _opened(path) as table:
        try:
            for batch in table.iter_batches(_ROWS, use_threads=False):
                yield from batch.to_pylist()
        except OSError as error:
            raise DataError(f"cannot read {path}: {shortened(str(error), 200)}") from None


def _opened(path: Path) -> Any:
    parquet = import_optional("pyarrow.parquet", "parquet")
    lib = import_optional("pyarrow", "parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, lib.ArrowInvalid) as error:
        raise DataError(f"cannot read {path} as parquet: {shortened(str(error), 200)}") from None
