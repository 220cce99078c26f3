"""Parallel text: pairs of sentences from aligned files, from a table, or of a synthetic task."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from axon_core import DataError, Key, config, expanded, gunzipped, refuse_folder

__all__ = [
    "Corpus",
    "SentencePair",
    "check_aligned",
    "normalised",
    "read_lines",
    "read_pairs",
    "reversed_pairs",
    "split_lines",
]

SentencePair = tuple[str, str]


class Corpus(config.Config):
    """Where pairs of sentences come from: `source` and `target`, or `tsv`, or `reverse`.

    Files are UTF-8 text, plain or compressed by gzip; `~` and `$VARIABLES` in paths are filled in.
    """

    source: str | None = None
    """A file of sentences, one a line."""
    target: str | None = None
    """Their translations: line i belongs to line i of `source`."""
    tsv: str | None = None
    """A file of pairs, one a line: source, tab, target. An empty line is a pair of empty sentences."""
    reverse: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """How many pairs of the synthetic task to make: letters, and the same letters backwards."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ("source", "target", "tsv", "reverse") if getattr(self, name) is not None]
        if given not in (["source", "target"], ["tsv"], ["reverse"]):
            raise ValueError(f"give source and target, or tsv, or reverse; got {' and '.join(given) or 'none of them'}")
        return self


def read_pairs(corpus: Corpus, role: str) -> list[SentencePair]:
    """Return the pairs of a corpus, unchanged; `role`, such as "train", tells synthetic ones apart.

    Raises:
        DataError: a file cannot be read, the files differ in length, or a line of the table does not have two columns.
    """
    if corpus.reverse is not None:
        return reversed_pairs(corpus.reverse, role)
    if corpus.tsv is not None:
        return [_columns(line, number, corpus.tsv) for number, line in enumerate(read_lines(corpus.tsv), 1)]
    source, target = str(corpus.source), str(corpus.target)
    sources, targets = read_lines(source), read_lines(target)
    check_aligned(sources, source, targets, target)
    return list(zip(sources, targets, strict=True))


def check_aligned(sources: Sequence[str], source: object, targets: Sequence[str], target: object) -> None:
    """Raise `DataError` unless two files have the same number of lines."""
    if len(sources) != len(targets):
        raise DataError(
            f"aligned files must have equally many lines, but {source} has {len(sources):,} and {target} "
            f"{len(targets):,}; line i of one must be the translation of line i of the other"
        )


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file, plain or gzip; a line ends at a newline and nowhere else.

    Raises:
        DataError: there is no such file, it cannot be read, is not UTF-8, or has no lines.
    """
    place = expanded(path)
    refuse_folder(place, "a file of sentences, one per line")
    try:
        data = place.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gunzipped(place)
    except FileNotFoundError:
        raise DataError(f"no such file: {place} (current folder: {Path.cwd()})") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {place}: {getattr(error, 'strerror', None) or error}") from None
    return split_lines(data, place)


def split_lines(data: bytes, place: object) -> list[str]:
    """Return the lines of UTF-8 text that was read from `place`. Raises `DataError` if it is not UTF-8, or is empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = error.object  # without a byte order mark
        line = text.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place} is not UTF-8 text: line {line:,} has the byte 0x{text[error.start]:02x} ({error.reason}); "
            "convert it, for example with iconv"
        ) from None
    if not text:
        raise DataError(f"{place} is empty; give sentences, one per line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def normalised(text: str) -> str:
    """Return `text` with every run of white space, including no-break spaces, as one space, and none at its ends."""
    return " ".join(text.split())


def reversed_pairs(count: int, role: str) -> list[SentencePair]:
    """Return pairs of the synthetic task: 3 to 8 random letters, and the same backwards.

    >>> reversed_pairs(1, "train")
    [('i c b', 'b c i')]
    """
    generator = Key(("reverse", role)).generator()
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    letters = torch.randint(26, (count, 8), generator=generator).tolist()
    words = [[chr(ord("a") + letter) for letter in row[:length]] for row, length in zip(letters, lengths, strict=True)]
    return [(" ".join(word), " ".join(reversed(word))) for word in words]


def _columns(line: str, number: int, path: str) -> SentencePair:
    columns = line.split("\t") if line else ["", ""]
    if len(columns) != 2:
        tabs = "no tab" if len(columns) == 1 else f"{len(columns)} columns"
        raise DataError(f"line {number:,} of {path} must be source, tab, target, but has {tabs}")
    return columns[0], columns[1]
