"""Objects in files of JSON: one a line, or the elements of an array; each is named in messages."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axon_core.documents import gunzipped, json_elements, not_utf8, parse_json
from axon_core.errors import DataError
from axon_core.escaping import shortened
from axon_core.folders import refuse_folder
from axon_core.paths import expanded

__all__ = ["json_array", "json_lines", "read_json_lines"]


def read_json_lines(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object in each line of a file, or of a `.gz` file, preceded by the line's name for messages.

    Blank lines are skipped.

    Raises:
        DataError: the path is a folder's, the file cannot be read or unpacks to far more than its size, or a line is
            not UTF-8 text, is not a JSON object, or has a field twice.
    """
    for _, place, value in json_lines(path):
        yield place, value


def json_lines(path: Path | str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the number of each line, its name for messages, and its object.

    Raises:
        DataError: see `read_json_lines`.
    """
    file, number = expanded(path), 0
    refuse_folder(file, "a file of JSON lines")
    try:
        with io.BytesIO(gunzipped(file)) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                place = f"line {number} of {file}"
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    with _named(place, "write one object per line"):
                        value = parse_json(line.decode("utf-8-sig"), int, **_HOOKS)
                    yield number, place, _object(value, place)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read {file} after line {number}: {reason}") from None


def json_array(path: Path | str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the number of each element of a file's array, counted from 1, its name for messages, and its object.

    Only the text of the file is held as a whole, never its objects.

    Raises:
        DataError: the file cannot be read, is not UTF-8 text or not an array, or an element is not a JSON object or has
            a field twice.
    """
    file = expanded(path)
    refuse_folder(file, "a file of JSON")
    try:
        data = gunzipped(file) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read {file}: {reason}") from None
    with _named(str(file), "give an array of objects, or one object per line"):
        text = data.decode("utf-8-sig")
    del data
    number, elements = 0, json_elements(text, int, **_HOOKS)
    while True:
        number += 1
        place = f"row {number} of {file}"
        with _named(place, "correct it, or remove it"):
            value = next(elements, _END)
        if value is _END:
            return
        yield number, place, _object(value, place)


_END = object()


@contextmanager
def _named(place: str, remedy: str) -> Generator[None]:
    """Say where text is that is not UTF-8, or not JSON."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(place, error)) from None
    except _TwiceError as error:
        raise DataError(f"{place} has the field {shortened(repr(error.args[0]), 60)} twice; remove one") from None
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}; {remedy}") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{place} must be a JSON object such as {{"prompt": …}}, got {shortened(repr(value), 60)}')
    return value  # pyright: ignore[reportUnknownVariableType]


class _TwiceError(ValueError):
    """An object has a field twice."""


def _no_number(name: str) -> None:
    """Refuse `NaN` and `Infinity`, which Python's reader accepts as numbers."""
    raise ValueError(f"{name} is not a number")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _TwiceError(name)
        fields[name] = value
    return fields


_HOOKS: dict[str, Any] = {"object_pairs_hook": _fields, "parse_constant": _no_number}
