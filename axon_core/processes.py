"""The processes of one training: which one this is, and what they agree on; with a single one all is the identity.

The processes form PyTorch's default process group. Texts and small numbers travel as JSON over its CPU back end,
so that nothing is pickled and no device is waited for.

Examples are divided among workers: a worker is a process, or `as_workers` some that compute each example together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from axon_core.errors import AxonError, UsageError
from axon_core.json_text import to_json

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "PeerError",
    "agree",
    "as_workers",
    "assembled",
    "borrowed",
    "by_mesh",
    "first_does",
    "from_first",
    "gather",
    "is_first",
    "is_lost",
    "is_spread",
    "local",
    "own",
    "parted",
    "rank",
    "restored",
    "share",
    "sum_numbers",
    "sum_tensors",
    "together",
    "worker",
    "workers",
    "world",
]

T = TypeVar("T")


_borrowed: ContextVar[bool] = ContextVar("borrowed", default=False)
_per_worker: ContextVar[int] = ContextVar("per_worker", default=1)


class PeerError(AxonError):
    """Another process of this training failed; the message is that process's.

    Attributes:
        told: whether another process prints the message.
    """

    told = False


def world() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, counted from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Return whether this process speaks for all: it alone prints, and writes what is not sharded."""
    return rank() == 0


@contextmanager
def as_workers(processes: int) -> Generator[None]:
    """Within the block, so many processes in a row are one worker: they compute the same examples together."""
    token = _per_worker.set(processes)
    try:
        yield
    finally:
        _per_worker.reset(token)


def workers() -> int:
    """Return how many workers there are, among which examples are divided."""
    return world() // _per_worker.get()


def worker() -> int:
    """Return the number of this process's worker, counted from 0."""
    return rank() // _per_worker.get()


def _counts() -> bool:
    """Whether this process's numbers count in sums: those of one process of each worker do."""
    return rank() % _per_worker.get() == 0


def share(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this worker's rows of a global batch: the r-th of as many near-equal pieces as there are workers."""
    return {name: rows.tensor_split(workers())[worker()] for name, rows in batch.items()}


def own(items: Sequence[T]) -> Sequence[T]:
    """Return this worker's part of what all are to work on: every `workers()`-th item, from the `worker()`-th on."""
    return items[worker() :: workers()]


def restored(mine: Sequence[T]) -> list[T]:
    """Return what all workers made of their `own` items, in the order of the items; it must be JSON."""
    parts = gather(list(mine))[:: _per_worker.get()]
    total = sum(len(part) for part in parts)
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]


@contextmanager
def borrowed(whether: bool) -> Generator[None]:
    """Within the block, this worker works on examples that are another's, so its numbers do not count in sums."""
    token = _borrowed.set(whether)
    try:
        yield
    finally:
        _borrowed.reset(token)


def sum_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors without axes, on one device, each summed over all workers in float64 at least."""
    if world() == 1 or not tensors:
        return list(tensors)
    total = torch.stack([tensor.detach().double() for tensor in tensors])
    total = total if _counts() else torch.zeros_like(total)
    dist.all_reduce(total)
    return list(total.unbind())


def sum_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return each number summed over all workers; all processes must pass the same names in the same order."""
    if world() == 1:
        return dict(numbers)
    counts = _counts() and not _borrowed.get()
    total = torch.tensor([value if counts else 0.0 for value in numbers.values()], dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(numbers, total.tolist(), strict=True))


def assembled(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
    """Return rows, on the CPU, of which each worker filled in its own part and left 0 elsewhere, with all parts."""
    if world() > 1:
        dist.all_reduce(rows if _counts() else rows.zero_())
    return rows


def gather(value: T) -> list[T]:
    """Return what each process passed, by rank; it must be JSON."""
    if world() == 1:
        return [value]
    mine = torch.frombuffer(bytearray(to_json(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))))
    found = zip(texts, sizes, strict=True)
    return [cast(T, json.loads(text[: int(size)].numpy().tobytes())) for text, size in found]


def from_first(value: T) -> T:
    """Return what the first process passed; it must be JSON. The others' values are not used."""
    if world() == 1:
        return value
    text = torch.tensor(list(to_json(value).encode()) if is_first() else [], dtype=torch.uint8)
    size = torch.tensor([len(text)])
    dist.broadcast(size, 0)
    data = text if is_first() else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return cast(T, json.loads(data.numpy().tobytes()))


def agree(flags: int) -> int:
    """Return the bits that any process set."""
    if world() == 1:
        return flags
    bits = torch.tensor([flags >> i & 1 for i in range(16)], dtype=torch.int32)
    dist.all_reduce(bits, dist.ReduceOp.MAX)
    return sum(1 << i for i, bit in enumerate(bits.tolist()) if bit)


def is_spread(tensor: object) -> TypeGuard[DTensor]:
    """Return whether a tensor is spread over processes, as PyTorch's `DTensor` is.

    Where nothing has imported that class, which takes a second, nothing is spread.
    """
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def local(tensor: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
    """Return this process's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


def by_mesh(tensors: Sequence[T]) -> list[list[T]]:
    """Return tensors grouped by the processes they are spread over: operations on many take no others together."""
    found: dict[object, list[T]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if is_spread(tensor) else None, []).append(tensor)
    return list(found.values())


def together(do: Callable[[], T]) -> T:
    """Return `do()`; if it fails in any process, raise in all: there the error itself, elsewhere its message.

    `do` must not wait for other processes, or fail in all of them alike where it does.

    Raises:
        PeerError: it failed in another process.
    """
    if world() == 1:
        return do()
    error: Exception | None = None
    result = cast(T, None)
    try:
        result = do()
    except Exception as caught:
        error = caught
    if not agree(error is not None):
        return result
    said = gather(None if error is None else (getattr(error, "exit_code", 1), str(error)))
    if error is not None:
        raise error
    for number, problem in enumerate(said):
        if problem is not None:
            raise _peer(number, int(problem[0]), str(problem[1]))
    return result


def first_does(do: Callable[[], Any]) -> None:
    """Call `do` in the first process alone; if it fails there, raise in all.

    Raises:
        PeerError: it failed, and this is another process.
    """
    together(lambda: do() if is_first() else None)


def is_lost(error: BaseException) -> bool:
    """Return whether an error is that of a process that waited in vain for another, which is lost or silent."""
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    texts = ("third_party/gloo", "Connection closed by peer", "Connection reset by peer")
    return any(
        isinstance(found, dist.DistError) or (isinstance(found, RuntimeError) and any(t in str(found) for t in texts))
        for found in seen
    )


def parted() -> UsageError:
    """Return the error of using what is spread over processes after they have left their group."""
    return UsageError(
        "the processes have parted, and each has only its part of the weights: in a script, train and use the model "
        "within one `with axon_core.joined():`"
    )


def _peer(number: int, code: int, message: str) -> PeerError:
    error = PeerError(f"process {number}: {message}")
    error.exit_code = code
    return error
