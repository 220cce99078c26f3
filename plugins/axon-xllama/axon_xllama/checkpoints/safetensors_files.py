"""Safetensors read one tensor at a time, and written as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from math import prod
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from axon_core import CheckpointError, to_json
from axon_core.checkpoint import read_tensor
from axon_xllama.checkpoints.layout import Stored

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_beginning = Lock()
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def stored_in(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, from its header alone.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something other than floating point numbers.
    """
    found: dict[str, Stored] = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                if (code := part.get_dtype()) not in _DTYPES:
                    raise CheckpointError(
                        f"{name!r} in {file} is {code}, but weights must be float32, float16 or bfloat16; use the "
                        "checkpoint before quantisation"
                    )
                found[name] = Stored(tuple(part.get_shape()), _DTYPES[code], partial(read_tensor, file, name))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing, so the checkpoint is incomplete; copy it again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or truncated: {error}; copy it again") from None
    return found


def write_safetensors(file: Path, tensors: Mapping[str, Sequence[Stored]], progress: Callable[[int], object]) -> None:
    """Write a safetensors file whose tensors are stacks of rows: while a part is written, the next one is read.

    The library only writes what is in memory as a whole, hence this function. Format: eight bytes for the length of the
    header, the header as JSON, then the tensors without gaps. `progress` is called with how many bytes were written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wide ones first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][0].dtype.itemsize, item[0]))
    for name, parts in ordered:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        begin, end = end, end + nbytes({name: parts})
        header[name] = {"dtype": _CODES[parts[0].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = to_json(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream, closing(read_ahead(part for _, parts in ordered for part in parts)) as read:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in read:
            progress(stream.write(_bytes(tensor)))


def read_ahead(parts: Iterable[Stored], threads: int = 1) -> Generator[Tensor]:
    """Yield the tensors, of which each thread reads another while the one before them is in use."""
    with ThreadPoolExecutor(threads, initializer=_one_after_the_other) as pool:
        waiting: deque[Future[Tensor]] = deque()
        for part in parts:
            waiting.append(pool.submit(part.read))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _one_after_the_other() -> None:
    """Begin a thread: in a forked process torch 2.13 makes its pool of threads anew, and fails if two do so at once."""
    with _beginning:
        torch.get_num_threads()


def nbytes(tensors: Mapping[str, Sequence[Stored]]) -> int:
    """Return how many bytes all parts of the tensors take."""
    return sum(prod(part.shape) * part.dtype.itemsize for parts in tensors.values() for part in parts)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
