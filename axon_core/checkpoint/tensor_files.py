"""Safetensors files written tensor after tensor, so that memory holds one of them, and the headers of such files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

__all__ = ["DTYPES", "Readable", "file_order", "read_header", "write_tensors"]

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""The dtypes by the format's names. A file has the last of them first, so that every tensor is aligned."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}


class Readable(Protocol):
    """A tensor that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    def read(self) -> Shaped[Tensor, ...]:
        """Return it."""
        ...


def file_order(tensors: Mapping[str, Tensor | Readable]) -> list[str]:
    """Return the names of tensors in the order in which a file has them: by dtype, then by name.

    Raises:
        KeyError: the format does not have one of the dtypes.
    """
    return sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor | Readable], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, flush it to disk, and return its SHA-256; memory: one tensor.

    The bytes are those that `safetensors.torch.save_file` writes. Tensors may share memory; each is written whole.

    Raises:
        OSError: the file cannot be written.
        KeyError: the format does not have one of the dtypes.
    """
    total = hashlib.sha256()
    with file.open("wb") as stream:
        for part in _contents(tensors, metadata):
            stream.write(part)
            total.update(part)
        stream.flush()
        os.fsync(stream.fileno())
    return total.hexdigest()


def read_header(file: Path) -> tuple[bytes, dict[str, dict[str, Any]], dict[str, str]]:
    """Return the beginning of a safetensors file, up to its numbers, what that says of each tensor, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged or cut off.
    """
    with file.open("rb") as stream, safe_open(file, "pt"):  # which checks it, and that the file is whole
        size = stream.read(8)
        text = stream.read(int.from_bytes(size, "little"))
    entries: dict[str, dict[str, Any]] = json.loads(text)
    metadata = entries.pop("__metadata__", {})
    return size + text, entries, metadata


def _header(tensors: Mapping[str, Tensor | Readable], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in file_order(tensors):
        dtype, shape = tensors[name].dtype, list(tensors[name].shape)
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _contents(
    tensors: Mapping[str, Tensor | Readable], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    yield _header(tensors, metadata)
    for name in file_order(tensors):
        found = tensors[name]
        tensor = found if isinstance(found, Tensor) else found.read()
        # Flattened before its bytes are viewed: a single number has no axis to view them along.
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
