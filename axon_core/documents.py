"""JSON and TOML from files, and compressed files: of any content, but of bounded depth and size."""

from __future__ import annotations

import json
import re
import tomllib
import zlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

from axon_core.json_text import to_json

__all__ = [
    "DEPTH",
    "JSON_CHARACTERS",
    "RATIO",
    "TOML_CHARACTERS",
    "check_unpacked",
    "gunzipped",
    "integer",
    "json_elements",
    "not_utf8",
    "parse_json",
    "parse_toml",
    "to_toml",
]

DEPTH = 64
"""How deep lists and tables may be nested."""
TOML_CHARACTERS, JSON_CHARACTERS = 1 << 20, 1 << 26
"""The most characters in a TOML file, which people write, and in a JSON file, which may hold a vocabulary."""
RATIO = 100
"""How many times its own size a packed file may unpack to, if that is more than 64 MiB."""
_FREE = 64 << 20
_SPACES = re.compile(r"[ \t\n\r]*")


def integer(digits: str) -> int:
    """Read an integer of a JSON file, which may be a size.

    Raises:
        ValueError: it is beyond 64 bits, and so cannot be a size.
    """
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"an integer must fit 64 bits, got {digits[:20]}{'…' * (len(digits) > 20)}")
    return int(digits)


def parse_json(text: str, parse_int: Callable[[str], int] = integer, **hooks: Any) -> Any:
    """Return what JSON says; files of other projects may hold integers that are not sizes (`parse_int=int`).

    `hooks` are the others of `json.loads`, such as `parse_constant`.

    Raises:
        ValueError: it is not JSON, holds an integer that cannot be a size, is nested more than `DEPTH` deep, or has
            more than `JSON_CHARACTERS`.
    """
    try:
        return _shallow(json.loads(_bounded(text, JSON_CHARACTERS), parse_int=parse_int, **hooks))
    except RecursionError:
        raise _too_deep() from None


def json_elements(text: str, parse_int: Callable[[str], int] = integer, **hooks: Any) -> Generator[Any]:
    """Yield the elements of a JSON array one after the other, so that they are never all held at once.

    `parse_int` and `hooks` as for `parse_json`; the array may have any size, and each element `JSON_CHARACTERS`.

    Raises:
        ValueError: it is not an array, or an element is not what `parse_json` accepts.

    >>> list(json_elements(' [1, {"a": 2}] '))
    [1, {'a': 2}]
    """
    decoder = json.JSONDecoder(parse_int=parse_int, **hooks)
    found, at = _mark(text, 0, "[")
    if text[at : at + 1] == "]":
        found, at = _mark(text, at, "]")
    while found != "]":
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            raise _too_deep() from None
        if end - at > JSON_CHARACTERS:
            raise ValueError(f"an element has {end - at:,} characters, but at most {JSON_CHARACTERS:,} are allowed")
        yield _shallow(value)
        del value
        found, at = _mark(text, end, ",]")
    if at < len(text):
        raise ValueError(f"nothing may follow the array, got {text[at]!r} at character {at}")


def _mark(text: str, at: int, wanted: str) -> tuple[str, int]:
    """Return the next character that is no space, which must be one of `wanted`, and where what follows it begins."""
    at = _past_spaces(text, at)
    if (found := text[at : at + 1]) not in tuple(wanted):
        raise ValueError(f"expected {' or '.join(wanted)} at character {at}, got {found!r}")
    return found, _past_spaces(text, at + 1)


def _past_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return found.end() if found else at


def parse_toml(text: str) -> dict[str, Any]:
    """Return what TOML says.

    Raises:
        ValueError: it is not TOML, is nested more than `DEPTH` deep, or has more than `TOML_CHARACTERS`.
    """
    try:
        return _shallow(tomllib.loads(_bounded(text, TOML_CHARACTERS)))
    except RecursionError:
        raise _too_deep() from None


def to_toml(tables: Mapping[str, Any]) -> str:
    """Return tables of numbers, strings, lists and tables as TOML, which has no None: None values are left out.

    >>> print(to_toml({"summary": "small", "trainer": {"lr": 0.1, "max_grad_norm": None, "betas": [0.9, 0.99]}}))
    summary = "small"
    <BLANKLINE>
    [trainer]
    lr = 0.1
    betas = [0.9, 0.99]
    """
    plain = {name: value for name, value in tables.items() if not isinstance(value, Mapping)}
    blocks = [plain, *(cast(Mapping[str, Any], tables[name]) for name in tables if name not in plain)]
    titles = ["", *(f"[{_toml_key(name)}]" for name in tables if name not in plain)]
    texts = (
        "\n".join([*([title] if title else []), *_assigned(block)]) for title, block in zip(titles, blocks, strict=True)
    )
    return "\n\n".join(text for text in texts if text)


def _assigned(table: Mapping[str, Any]) -> list[str]:
    return [f"{_toml_key(name)} = {_toml_value(value)}" for name, value in table.items() if value is not None]


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(_assigned(cast(Mapping[str, Any], value)))
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, cast(list[Any], value)))}]"
    text = to_json(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def not_utf8(place: object, error: UnicodeDecodeError, before: int = 0) -> str:
    r"""Return the sentence for bytes that are not UTF-8; the byte is counted from 1, after `before` others.

    >>> not_utf8("a.txt", UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "invalid start byte"))
    'a.txt is not UTF-8 text: byte 4 is 0xe9 (invalid start byte); convert the file, for example with iconv'
    """
    byte = error.object[error.start]
    return (
        f"{place} is not UTF-8 text: byte {before + error.start + 1:,} is 0x{byte:02x} ({error.reason}); convert the "
        "file, for example with iconv"
    )


def check_unpacked(size: int, packed: int, file: Path) -> None:
    """Raise `ValueError` if a file of `packed` bytes would unpack to `size` bytes, too many to be data."""
    if size > max(_FREE, RATIO * packed):
        raise ValueError(
            f"{file.name} has {packed:,} bytes and would unpack to more than {RATIO} times as many; unpack it "
            "yourself to use it"
        )


def gunzipped(file: Path) -> bytes:
    """Return the contents of a gzip file, of one part or several.

    Raises:
        OSError: it cannot be read.
        EOFError: it is cut off.
        zlib.error: it is damaged.
        ValueError: it would unpack to far more than its size (`check_unpacked`).
    """
    packed = file.read_bytes()
    if not packed.startswith(b"\x1f\x8b"):
        raise OSError("Not a gzipped file")
    for _ in _pieces(packed, file):
        pass  # what is refused is never held as a whole
    return b"".join(_pieces(packed, file))


def _pieces(packed: bytes, file: Path) -> Generator[bytes]:
    """Yield what a gzip file unpacks to, a MiB at a time."""
    size, rest = 0, packed
    while rest:
        reader = zlib.decompressobj(wbits=31)
        while not reader.eof:
            piece = reader.decompress(rest, 1 << 20)
            rest = reader.unconsumed_tail
            size += len(piece)
            check_unpacked(size, len(packed), file)
            yield piece
            if not piece and not rest and not reader.eof:
                raise EOFError("it is truncated")
        rest = reader.unused_data.lstrip(b"\0")  # with which some programs pad the last block


def _bounded(text: str, most: int) -> str:
    if len(text) > most:
        raise ValueError(f"it has {len(text):,} characters, but at most {most:,} are allowed")
    return text


def _shallow(value: Any) -> Any:
    level = [value]
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, Mapping):
                inner += cast(Mapping[str, Any], node).values()
            elif isinstance(node, list):
                inner += cast(list[Any], node)
        if not (level := inner):
            return value
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {DEPTH} levels deep (lists in lists or tables in tables)")
