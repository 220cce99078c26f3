"""Joining the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["joined", "local_rank"]


def local_rank() -> int:
    """Return this process's number on its machine, as torchrun counts; 0 for one that it did not start."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(timeout: float = 600.0) -> Generator[None]:
    """Within the block, be one of the processes that torchrun started; any other process stays by itself.

    The group is nccl on GPUs, one device for each process, and gloo on CPUs; small messages take gloo on both. Inside
    an outer `joined`, or in a group that the caller made, nothing happens.

    Args:
        timeout: seconds after which a process that waits for another gives up.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield
    finally:
        dist.destroy_process_group()
