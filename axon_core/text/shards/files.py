"""A shard on disk: a safetensors file of token ids and of the places where documents end."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, overload
from weakref import finalize

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from axon_core.checkpoint.atomic import atomic_file
from axon_core.config import Config, validate
from axon_core.documents import parse_json
from axon_core.errors import ConfigError, DataError
from axon_core.json_text import to_json
from axon_core.text.encoding import IdType, TokenArray

__all__ = ["Shard", "ShardFacts", "ShardWriter", "written_shard"]

_HEADER = 2048
"""Bytes before the tokens: 8 for the length of the text that follows, which is filled up with spaces."""
_TYPES = {"U16": np.uint16, "U32": np.uint32}
_VERSION = "1"


class ShardFacts(Config):
    """What a shard holds, in its own header."""

    tokens: NonNegativeInt
    """Number of tokens."""
    documents: NonNegativeInt
    """Number of documents that end in it."""
    text_bytes: NonNegativeInt
    """Bytes of UTF-8 text that became its tokens."""
    left_out: NonNegativeInt
    """Lines or rows that were no documents."""
    position: NonNegativeInt
    """Passages of its unit of work that have been read when it is complete."""
    last: bool
    """Whether the unit of work ends with it."""
    tokenizer: str = Field(pattern="^[0-9a-f]{64}$")
    """The fingerprint of the tokenizer."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """The checksum of all that follows the header."""


class ShardWriter:
    """Writes the tokens of documents one after the other, and then the places where documents end.

    Args:
        file: an empty file.
        dtype: the type of ids.
    """

    def __init__(self, file: IO[bytes], dtype: IdType) -> None:
        self.tokens = self.text_bytes = self.left_out = 0
        self._file, self._dtype = file, dtype
        self._ends: list[NDArray[np.int64]] = []
        self._open: list[int] = []
        self._sum = hashlib.sha256()
        file.write(bytes(_HEADER))

    def add(self, tokens: TokenArray) -> None:
        """Append tokens."""
        self.tokens += len(tokens)
        self._write(tokens.astype(self._dtype, copy=False).tobytes())

    def end_document(self) -> None:
        """Note that a document ends here."""
        self._open.append(self.tokens)
        if len(self._open) >= 1 << 14:  # an array takes a fifth of what a list does
            self._ends.append(np.array(self._open, np.int64))
            self._open = []

    def finish(self, position: int, last: bool, tokenizer: str) -> ShardFacts:
        """Write the rest of the file, and return what it holds."""
        ends = np.concatenate([*self._ends, np.array(self._open, np.int64)])
        size = self.tokens * np.dtype(self._dtype).itemsize
        gap = -size % 8
        self._write(bytes(gap))
        self._write(ends.tobytes())
        facts = ShardFacts(
            tokens=self.tokens,
            documents=len(ends),
            text_bytes=self.text_bytes,
            left_out=self.left_out,
            position=position,
            last=last,
            tokenizer=tokenizer,
            sha256=self._sum.hexdigest(),
        )
        text = to_json(_layout(facts, np.dtype(self._dtype).itemsize), ensure_ascii=True).encode()
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))
        return facts

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)


@contextmanager
def written_shard(path: Path, dtype: IdType) -> Generator[ShardWriter]:
    """Yield the writer of a shard that is there, complete, when the block ends; its `finish` must have been called.

    Raises:
        CheckpointError: it cannot be written.
    """
    with atomic_file(path) as draft, draft.open("wb", buffering=1 << 17) as file:
        yield ShardWriter(file, dtype)


class Shard:
    """A shard that is read piece by piece; its sizes have been checked, its checksum only by `verify`.

    What is read is copied: pages of a memory map would stay resident, and a file that becomes shorter while it is
    mapped would end the process without a message.

    Attributes:
        facts: what it says of itself.
        dtype: the type of its ids.
        ends: the places where its documents end, each counted in tokens from the shard's beginning.
        close: closes the file, as the end of the object does.

    Raises:
        DataError: the file is missing, cut off, damaged, or not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"cannot read the shard {path}: {error.strerror}; restore it") from None
        self.close = finalize(self, os.close, self._descriptor)
        self.facts, self.dtype = self._checked()
        self.ends = _Ends(self)

    def read(self, begin: int, end: int) -> TokenArray:
        """Return the tokens `begin` to `end` − 1. Raises `DataError` if the file has become shorter."""
        item = np.dtype(self.dtype).itemsize
        return np.frombuffer(self.bytes_at(_HEADER + begin * item, (end - begin) * item), self.dtype)

    def bytes_at(self, at: int, size: int) -> bytes:
        """Return bytes of the file. Raises `DataError` if it has become shorter, or cannot be read."""
        try:
            data = os.pread(self._descriptor, size, at)
        except OSError as error:
            raise DataError(f"cannot read the shard {self.path}: {error.strerror}") from None
        if len(data) != size:
            raise DataError(f"the shard {self.path} is truncated: it ends before byte {at + size:,}; restore it")
        return data

    def verify(self) -> None:
        """Compare all of the file with its checksum. Raises `DataError` if they differ."""
        total, at, end = hashlib.sha256(), _HEADER, os.fstat(self._descriptor).st_size
        while at < end:
            total.update(data := self.bytes_at(at, min(1 << 20, end - at)))
            at += len(data)
        if total.hexdigest() != self.facts.sha256:
            raise DataError(f"the shard {self.path} is damaged: it does not match its checksum; restore it")

    def _checked(self) -> tuple[ShardFacts, IdType]:
        size = os.fstat(self._descriptor).st_size
        try:
            if size < _HEADER:
                raise ValueError("it is shorter than its header")
            head = self.bytes_at(0, _HEADER)
            if struct.unpack("<Q", head[:8]) != (_HEADER - 8,):
                raise ValueError("it does not begin as one")
            header = parse_json(head[8:].decode())
            about = header["__metadata__"]
            facts = validate(ShardFacts, {key: value for key, value in about.items() if key != "format"})
            kind: str = header["tokens"]["dtype"]
            dtype = _TYPES[kind]
            if about["format"] != _format() or header != _layout(facts, np.dtype(dtype).itemsize):
                raise ValueError("its header contradicts itself")
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise DataError(f"{self.path} is damaged or not a token shard ({error}); restore it") from None
        expected = _HEADER + header["ends"]["data_offsets"][1]
        if size != expected:
            raise DataError(
                f"the shard {self.path} must have {expected:,} bytes for its {facts.tokens:,} tokens, got {size:,}: it "
                "is truncated or damaged; restore it"
            )
        return facts, dtype


class _Ends(Sequence[int]):
    """The places where a shard's documents end, read one by one: what `bisect` needs."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        size = shard.facts.tokens * np.dtype(shard.dtype).itemsize
        self._begin = _HEADER + size + -size % 8

    def __len__(self) -> int:
        return self._shard.facts.documents

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            begin, end, _ = index.indices(len(self))
            return np.frombuffer(self._shard.bytes_at(self._begin + 8 * begin, 8 * (end - begin)), np.int64).tolist()
        if not 0 <= index < len(self):
            raise IndexError(index)
        return struct.unpack("<q", self._shard.bytes_at(self._begin + 8 * index, 8))[0]


def _format() -> str:
    return f"axon token shard {_VERSION}"


def _layout(facts: ShardFacts, item: int) -> dict[str, Any]:
    """Return a safetensors header: the tokens, zeros up to a multiple of 8 bytes, and the ends of documents."""
    size = facts.tokens * item
    gap = -size % 8
    end = size + gap + 8 * facts.documents
    return {
        "__metadata__": {
            "format": _format(),
            **{name: str(value).lower() for name, value in facts.model_dump(mode="json").items()},
        },
        "tokens": {"dtype": "U16" if item == 2 else "U32", "shape": [facts.tokens], "data_offsets": [0, size]},
        "gap": {"dtype": "U8", "shape": [gap], "data_offsets": [size, size + gap]},
        "ends": {"dtype": "I64", "shape": [facts.documents], "data_offsets": [size + gap, end]},
    }
