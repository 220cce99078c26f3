"""The passages of documents in a span of a file: the same ones wherever a reading begins again."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from axon_core.documents import not_utf8
from axon_core.errors import DataError
from axon_core.escaping import shortened
from axon_core.text.shards.inputs import InputFile, Span
from axon_core.text.shards.streams import opened, reading
from axon_core.text.shards.tables import column_values

__all__ = ["Passage", "passages"]

PASSAGE = 1 << 16
"""Bytes after which a long text is cut, at the end of the line."""
LINE = 1 << 26
"""The most bytes in a line of JSON."""


class Passage(NamedTuple):
    """A piece of a document, or the whole."""

    text: str
    first: bool
    """Whether the document begins with it."""
    last: bool
    """Whether it ends with it."""
    wrong: str
    """Why this is not a document, such as "is not JSON"; empty if it is one."""
    place: Callable[[], str]
    """Says where it stands, for messages."""
    read: int
    """How many bytes of the file have been read when it has been, from the beginning of the span."""


def passages(span: Span, field: str) -> Iterator[Passage]:
    """Yield the passages of a span.

    A text file is one document, however long it is; a line of JSON and a row of a table are a document each. In a text,
    a carriage return before the end of a line is left out, and so is a byte order mark at its beginning.

    Args:
        span: what to read.
        field: the field of a JSON object, or the column of a table, that holds the text.

    Raises:
        DataError: the file cannot be read or has changed, a text is not UTF-8, or a line is far too long.
        UsageError: a package that the kind of file needs is not installed.
    """
    file = span.file
    with reading(file.path):
        if file.path.stat().st_size != file.size:
            raise DataError(f"{file.path} has changed since its size was read; start again with an empty folder")
    if file.kind == "table":
        yield from _rows(span, field)
        return
    with opened(file.path, file.packing) as (stream, raw):
        if file.kind == "text":
            yield from _pieces(span, stream, raw)
        else:
            yield from _lines(span, stream, raw, field)


def _rows(span: Span, field: str) -> Iterator[Passage]:
    path = span.file.path
    for number, text in enumerate(column_values(path, field, span.begin, span.end)):

        def place(number: int = number) -> str:
            return f"row {number + 1:,} after row group {span.begin} of {path}"

        wrong = "" if text is not None else f"has no text in the column {field!r}"
        yield Passage(text or "", True, True, wrong, place, 0)


def _pieces(span: Span, stream: io.BufferedReader, raw: IO[bytes]) -> Iterator[Passage]:
    """Yield the text of the lines that begin in the span; each passage ends with a line, if one ends near."""
    at, end, size = _first_line(span, stream), _end(span), span.file.size
    held = _passage(stream, end - at)
    while held:
        after = at + len(held)
        following = _passage(stream, end - after) if after < end else b"" if held.endswith(b"\n") else _line(stream)
        try:
            text = (held.removeprefix(codecs.BOM_UTF8) if at == 0 else held).decode()
        except UnicodeDecodeError as error:
            raise DataError(not_utf8(span.file.path, error, at) + ", or leave it out") from None
        last = not following if span.file.packing else after >= size
        read = raw.tell() if span.file.packing else min(after, end) - span.begin
        yield Passage(text.replace("\r\n", "\n"), at == 0, last, "", lambda: str(span.file.path), read)
        at, held = after, following


def _passage(stream: io.BufferedReader, most: int) -> bytes:
    """Return the next lines, at least one and together about as long as a passage; nothing at the end."""
    held = stream.read(min(PASSAGE, most)) if most > 0 else b""
    return held if not held or held.endswith(b"\n") else held + _line(stream)


def _line(stream: io.BufferedReader) -> bytes:
    """Return the rest of a line; one that goes on and on is cut between two characters, but not after a return."""
    held = stream.readline(PASSAGE)
    while held and not held.endswith(b"\n") and (more := stream.peek(1)[:1]):
        if not (held.endswith(b"\r") or 0x80 <= more[0] < 0xC0):
            break
        held += stream.read(1)
    return held


def _lines(span: Span, stream: io.BufferedReader, raw: IO[bytes], field: str) -> Iterator[Passage]:
    at, end, number = _first_line(span, stream), _end(span), 0
    while at < end and (line := stream.readline(LINE + 1)):
        number += 1
        place = _line_place(span.file, at, number if span.begin == 0 else None)
        if len(line) > LINE:
            raise DataError(f"{place()} has more than {LINE >> 20} MiB; a document must fit into a line of that length")
        at += len(line)
        read = raw.tell() if span.file.packing else at - span.begin
        if line.strip() and line != codecs.BOM_UTF8:
            text, wrong = _text_of(line, field)
            yield Passage(text, True, True, wrong, place, read)


def _text_of(line: bytes, field: str) -> tuple[str, str]:
    """Return the text in a line of JSON, or what is wrong with the line."""
    try:
        record: Any = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return "", not_utf8("", error).lstrip()
    except RecursionError:
        return "", "is nested too deeply to be read"
    except ValueError as error:
        return "", f"is not JSON: {error}; write one object per line"
    if not isinstance(record, dict):
        return "", f'must be a JSON object such as {{"{field}": …}}, got {shortened(repr(record), 60)}'
    if field not in record:
        names = shortened(", ".join(map(str, record)), 100)  # pyright: ignore[reportUnknownArgumentType]
        return "", f"has no field {field!r}; its fields are {names or 'none'}: choose one with --field"
    if not isinstance(text := record[field], str):  # pyright: ignore[reportUnknownVariableType]
        return "", f"must have a text in the field {field!r}, got {shortened(repr(text), 60)}"
    return text, ""


def _line_place(file: InputFile, at: int, number: int | None) -> Callable[[], str]:
    """Return a function that names a line; where its number is not known, the lines before it are counted."""
    return lambda: f"line {number or 1 + _newlines(file.path, at):,} of {file.path}"


def _newlines(path: Path, end: int) -> int:
    with reading(path), path.open("rb") as file:
        chunks = (file.read(min(1 << 20, end - at)) for at in range(0, end, 1 << 20))
        return sum(chunk.count(b"\n") for chunk in chunks)


def _first_line(span: Span, stream: io.BufferedReader) -> int:
    """Go to the first line that begins in a span, and return where that is."""
    if span.begin == 0:
        return 0
    stream.seek(span.begin - 1)
    while (rest := stream.readline(PASSAGE)) and not rest.endswith(b"\n"):
        pass
    return stream.tell()


def _end(span: Span) -> int:
    """Return the place before which the last line of a span begins."""
    return 1 << 62 if span.file.packing else span.end
