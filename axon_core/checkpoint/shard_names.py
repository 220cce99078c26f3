"""The names of the files that hold a checkpoint's tensors, one file or one of each process."""

from __future__ import annotations

import re
from collections.abc import Sequence

from axon_core.checkpoint.atomic import TENSORS

__all__ = ["is_shard", "missing_shard", "shard_name"]

_SHARD = re.compile(r"tensors-(\d{5,})-of-(\d{5,})\.safetensors")


def is_shard(name: str) -> bool:
    """Return whether a file of this name is that of one of several processes."""
    return _SHARD.fullmatch(name) is not None


def missing_shard(names: Sequence[str]) -> str | None:
    """Return the name of a file of tensors that is not among a checkpoint's, or None."""
    shards = [found for name in names if (found := _SHARD.fullmatch(name))]
    if TENSORS in names or not shards:
        return None if TENSORS in names else TENSORS
    count = int(shards[0][2])
    return next((name for i in range(count) if (name := shard_name(i, count)) not in names), None)


def shard_name(number: int, of: int) -> str:
    """Return the name of the file that process `number` writes, counted from 0, of several or alone."""
    return TENSORS if of == 1 else f"tensors-{number + 1:05}-of-{of:05}.safetensors"
