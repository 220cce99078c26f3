"""Rows of a file, whatever it is: JSON lines, a JSON array, or a table of parquet; each is named in messages."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from axon_core.folders import full_suffix, refuse_folder
from axon_core.paths import expanded
from axon_core.text.json_rows import json_array, json_lines
from axon_core.text.shards.tables import table_rows

__all__ = ["STRUCTURED", "DataRow", "data_rows"]

STRUCTURED = frozenset(f"{suffix}{packing}" for suffix in (".jsonl", ".ndjson", ".json") for packing in ("", ".gz")) | {
    ".parquet"
}
"""Suffixes of files that hold rows rather than text."""


class DataRow(NamedTuple):
    """One row of a file."""

    number: int
    """Its line, or its place in the array or table, counted from 1."""
    place: str
    """What to call it in a message: `line 3 of data.jsonl`."""
    fields: dict[str, Any]
    """What it holds."""


def data_rows(path: Path | str) -> tuple[Literal["line", "row"], Iterator[DataRow]]:
    """Return what a file's rows are, and the rows one after the other.

    A file ending in `.parquet` is a table; one ending in `.json` whose first character is `[` is an array. Any other
    holds JSON lines; a `.gz` is unpacked.

    Raises:
        DataError: the file, while it is read, turns out not to be one of these; see `json_lines` and `json_array`.
        UsageError: it is a table, and pyarrow is not installed.
    """
    file = expanded(path)
    suffix = full_suffix(file)
    if suffix == ".parquet":
        refuse_folder(file, "a file")
        return "row", (DataRow(i, f"row {i} of {file}", fields) for i, fields in enumerate(table_rows(file), 1))
    if suffix in (".json", ".json.gz") and _is_array(file):
        return "row", (DataRow(*found) for found in json_array(file))
    return "line", (DataRow(*found) for found in json_lines(file))


def _is_array(file: Path) -> bool:
    """Whether a file's first character is `[`; one that cannot be read is not, and the reader says why."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            return opened.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except (OSError, EOFError, zlib.error):
        return False
