"""Packing: several examples in one row, so that little of a batch is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from axon_core.text import PAD

__all__ = ["collate", "pack"]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of example numbers, the lengths in each row summing to at most `capacity`.

    Best fit, the longest first: an example goes into the fullest row it fits into. Nothing is cut; an example may not
    be longer than `capacity`.

    >>> pack([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # how much each row has left, and its number; the fullest first
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        left, row = room.pop(at) if at < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


def collate(rows: Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]]) -> dict[str, Tensor]:
    """Return `tokens`, `scored` and `documents` `(b n)` of rows of examples, each given as its tokens and which count.

    Documents are numbered from 1 in each row; 0 is padding.
    """
    size = max(sum(len(tokens) for tokens, _ in row) for row in rows)
    tokens = torch.full((len(rows), size), PAD)
    scored = torch.zeros(len(rows), size, dtype=torch.bool)
    documents = torch.zeros(len(rows), size, dtype=torch.long)
    for i, row in enumerate(rows):
        end = 0
        for number, (ids, counts) in enumerate(row, 1):
            begin, end = end, end + len(ids)
            tokens[i, begin:end] = torch.tensor(ids)
            scored[i, begin:end] = torch.tensor(counts)
            documents[i, begin:end] = number
    return {"tokens": tokens, "scored": scored, "documents": documents}
