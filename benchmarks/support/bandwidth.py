"""How fast memory can be read: the bound of decoding, which reads every weight once a token."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def bandwidth(device: str, threads: int) -> Callable[[], float]:
    """Return a function that measures the bandwidth of memory in bytes a second.

    On a CPU it is the best of five `torch.sum` over a float32 tensor of 1 GiB and of five `torch.dot` of its halves; on
    a GPU the best of five copies of such a tensor, which read 1 GiB and write as much.
    """
    torch.set_num_threads(threads)
    x = torch.ones(1 << 28, device=device)
    if device == "cpu":
        a, b = x.chunk(2)
        return lambda: max(x.nbytes / _fastest(lambda: x.sum()), x.nbytes / _fastest(lambda: torch.dot(a, b)))
    y = torch.empty_like(x)

    def copy() -> None:
        y.copy_(x)
        torch.cuda.synchronize()

    return lambda: 2 * x.nbytes / _fastest(copy)


def _fastest(read: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - start)
    return best
