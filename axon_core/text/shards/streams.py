"""The bytes of a file, unpacked as they are read, whether it is packed as one part or several."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from axon_core.errors import DataError
from axon_core.registry.optional import import_optional

__all__ = ["opened", "reading"]

_CHUNK = 1 << 14
"""Packed bytes that are unpacked at a time."""


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn what a damaged, truncated or unreadable file raises in the block into a `DataError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read {path}: {reason}; restore the file, or leave it out") from None


@contextmanager
def opened(path: Path, packing: str) -> Generator[tuple[io.BufferedReader, IO[bytes]]]:
    """Yield the unpacked bytes of a file, and the file itself, whose position says how much of it has been read.

    Raises:
        DataError: the file is damaged or cut off, when that is reached.
        UsageError: it is a `.zst` file, and the package zstandard is needed for it and not installed.
    """
    with reading(path), path.open("rb") as file:
        match packing:
            case ".gz":
                yield io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), 1 << 17), file
            case ".zst":
                yield io.BufferedReader(_zst(file), 1 << 17), file
            case _:
                yield file, file


def _zst(file: IO[bytes]) -> io.RawIOBase:
    if sys.version_info >= (3, 14):
        return cast(io.RawIOBase, import_module("compression.zstd").ZstdFile(file))
    return _Frames(file, import_optional("zstandard", "zst").ZstdDecompressor())


class _Frames(io.RawIOBase):
    """What the frames of a Zstandard file unpack to, one after the other.

    The package's own readers stop after the first frame, or at the end of a file that is cut off, without an error.

    Args:
        file: the packed bytes.
        unpacker: makes an object for each frame.
    """

    def __init__(self, file: IO[bytes], unpacker: Any) -> None:
        self._file, self._unpacker = file, unpacker
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as one chunk allows; 0 means the end.

        Raises:
            OSError: the file is damaged.
            EOFError: it is cut off.
        """
        while not self._ready and self._refill():
            pass
        view = memoryview(buffer)
        size = min(len(view), len(self._ready))
        view[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _refill(self) -> bool:
        """Unpack a chunk; return False at the end of the file."""
        if not self._packed:
            self._packed = self._file.read(_CHUNK)
        if not self._packed:
            if self._frame is not None:
                raise EOFError("it is truncated: its last part is not complete")
            return False
        self._frame = self._frame or self._unpacker.decompressobj()
        try:
            self._ready = self._frame.decompress(self._packed)
        except Exception as error:  # the package's `ZstdError`
            raise OSError(f"it is damaged, or not a .zst file ({error})") from None
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True
