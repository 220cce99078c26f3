"""Where tensors lie in memory: in huge pages, whose addresses a processor looks up less often."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator

from torch import Tensor

__all__ = ["use_huge_pages"]

_SIZE = 2 << 20  # bytes of a huge page on x86-64, and on ARM where pages are of 4 KiB
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # <linux/mman.h>; the second since Linux 6.1


def use_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Ask Linux to move the memory of tensors on the CPU into huge pages, in place; their addresses stay.

    A processor that streams 200 MB of weights looks up 50,000 pages of 4 KiB, or 100 of 2 MiB, and fetches no data
    ahead past the end of one. It takes two seconds a gigabyte, once. Other systems, older kernels, and memory mapped
    from a file stay as they are: only the speed depends on it.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start in _pages(tensors):
        madvise(start, _SIZE, _MADV_HUGEPAGE)  # for the pages that are not there yet
        madvise(start, _SIZE, _MADV_COLLAPSE)


def _pages(tensors: Iterable[Tensor]) -> Iterator[int]:
    """The addresses of the huge pages that the tensors on the CPU would lie in, once each."""
    spans = ((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.device.type == "cpu" and t.nbytes)
    done = 0
    for start, end in sorted(spans):
        for page in range(max(start // _SIZE * _SIZE, done), end, _SIZE):
            yield page
            done = page + _SIZE
