"""The files to tokenize, and the units of work that they are cut into, which depend on the files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from axon_core.errors import DataError, UsageError
from axon_core.folders import TEXT_SUFFIXES, data_files, full_suffix
from axon_core.paths import expanded
from axon_core.text.shards.tables import row_groups

__all__ = ["InputFile", "Span", "find_inputs", "units_of"]

Kind = Literal["text", "lines", "table"]
Packing = Literal["", ".gz", ".zst"]

_LINES = (".jsonl", ".ndjson", ".json")


class InputFile(NamedTuple):
    """A file of texts."""

    path: Path
    kind: Kind
    """Text, JSON lines, or a table of parquet."""
    packing: Packing
    """How it is compressed, by its suffix."""
    size: int
    """Bytes on disk."""


class Span(NamedTuple):
    """A part of a file: the lines that begin in a range of bytes, a range of a table's row groups, or all of it."""

    file: InputFile
    begin: int
    end: int
    """Bytes of a file that is not compressed, or row groups of a table; of a compressed file, 0 and its size."""
    size: int
    """Its bytes on disk."""


def find_inputs(paths: Iterable[Path | str]) -> list[InputFile]:
    """Return the files that are named, and those in folders, in the order of `data_files`.

    Raises:
        DataError: one does not exist, cannot be read or is empty, or a folder has none.
        UsageError: a file is given twice.
    """
    places = [expanded(path) for path in paths]
    found = [_described(file) for place in places for file in _files(place)]
    seen = set[Path]()
    for file in found:
        if (real := file.path.resolve()) in seen:
            raise UsageError(f"{file.path} is given twice, and would be read twice; give each file once")
        seen.add(real)
    return found


def units_of(files: Sequence[InputFile], size: int, field: str) -> list[tuple[Span, ...]]:
    """Return the units of work: spans that follow each other, of about `size` bytes together, but of one at least.

    Raises:
        DataError: a table cannot be read, or has no column `field` of texts.
        UsageError: a table is there, and pyarrow is not.
    """
    units: list[list[Span]] = []
    held = size
    for span in (span for file in files for span in _spans(file, size, field)):
        if held + span.size > size:
            units.append([])
            held = 0
        units[-1].append(span)
        held += span.size
    return [tuple(unit) for unit in units]


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        kinds = {*TEXT_SUFFIXES, *_LINES}
        packed = {f"{suffix}{packing}" for suffix in kinds if suffix for packing in (".gz", ".zst")}
        return data_files(place, "text", {*kinds, *packed, ".parquet"} - {".json"})  # rarely lines: give it by name
    if not place.exists():
        raise DataError(f"no such file or folder: {place} (current folder: {Path.cwd()})")
    return [place]


def _described(path: Path) -> InputFile:
    suffix = full_suffix(path)
    packing: Packing = ".gz" if suffix.endswith(".gz") else ".zst" if suffix.endswith(".zst") else ""
    inner = suffix.removesuffix(packing)
    kind: Kind = "lines" if inner in _LINES else "table" if suffix == ".parquet" else "text"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if not size:
        raise DataError(f"{path} is empty; leave it out, or give a file with text")
    return InputFile(path, kind, packing, size)


def _spans(file: InputFile, size: int, field: str) -> Iterator[Span]:
    """Yield the spans of a file: near-equal ones of at most `size` bytes where it can be entered in between."""
    if file.kind == "table":
        groups = row_groups(file.path, field)
        total, begin, held = sum(groups), 0, 0
        for end, group in enumerate(groups, 1):
            held += group
            if held >= size or end == len(groups):
                yield Span(file, begin, end, file.size * held // max(1, total))
                begin, held = end, 0
    elif file.packing:
        yield Span(file, 0, file.size, file.size)
    else:
        parts = -(-file.size // size)
        ends = [file.size * part // parts for part in range(parts + 1)]
        yield from (Span(file, a, b, b - a) for a, b in pairwise(ends))
