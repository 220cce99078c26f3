"""How the C library hands out memory for tensors on the CPU."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # <malloc.h> of glibc
_LARGEST = 32 << 20  # bytes: glibc takes no larger threshold


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors of up to 32 MB for the next ones, where the library is glibc.

    Otherwise each result of more than 128 kB is memory that Linux makes and clears anew, page by page, and takes back
    soon after: a tenth of the time of a training step. All threads share what is free, because those of the backward
    pass free what the forward pass made.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    for option, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, _LARGEST),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 2 * _LARGEST),
    ):
        library.mallopt(option, value)
