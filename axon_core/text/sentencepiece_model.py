"""What a sentencepiece model file says about itself: its pieces with scores and kinds, and how it normalises text.

The library does not expose all of it, and its own reader needs protobuf. The file is one message of that format
(`ModelProto` in sentencepiece's `sentencepiece_model.proto`), of which a few fields are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

__all__ = ["PieceKind", "SentencePiece", "SentencePieceModel"]


class PieceKind(IntEnum):
    """What a piece is for (`ModelProto.SentencePiece.Type`)."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class SentencePiece(NamedTuple):
    """One piece of the vocabulary."""

    text: str
    score: float
    kind: PieceKind


@dataclass
class SentencePieceModel:
    """The fields of a model file that decide which ids a text gets."""

    pieces: list[SentencePiece] = field(default_factory=list[SentencePiece])
    algorithm: str = "unigram"
    """How pieces are chosen: `unigram`, `bpe`, `word` or `char`."""
    rule: bytes = b""
    """The compiled table by which characters are replaced; empty if none is."""
    adds_space: bool = True
    """Whether a space is put before every text."""
    merges_spaces: bool = True
    """Whether spaces at the ends are dropped, and runs of them become one."""
    marks_spaces: bool = True
    """Whether spaces become the mark U+2581."""
    suffix: bool = False
    """Whether that mark ends a word instead of beginning it."""

    @classmethod
    def read(cls, data: bytes) -> SentencePieceModel:
        """Return what a file that the library has accepted says; what it leaves out has the format's defaults.

        Raises:
            ValueError: it is not such a file.
        """
        model = cls()
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                found = dict(_fields(value))
                score, kind = found.get(2, b"\0\0\0\0"), found.get(3, 1)
                assert isinstance(score, bytes) and isinstance(kind, int)
                text = found.get(1, b"")
                assert isinstance(text, bytes)
                model.pieces.append(SentencePiece(text.decode(), struct.unpack("<f", score)[0], PieceKind(kind)))
            elif number == 2 and isinstance(value, bytes):
                found = dict(_fields(value))
                model.algorithm = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}[int(found.get(3, 1))]
                model.suffix = bool(found.get(24, 0))
            elif number == 3 and isinstance(value, bytes):
                found = dict(_fields(value))
                rule = found.get(2, b"")
                model.rule = rule if isinstance(rule, bytes) else b""
                model.adds_space, model.merges_spaces, model.marks_spaces = (bool(found.get(n, 1)) for n in (3, 4, 5))
        return model


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message in protobuf's wire format: numbers as such, all else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case other:
                raise ValueError(f"wire type {other} is unknown")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number, of seven bits a byte, that begins at `at`, and where the next field begins."""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
