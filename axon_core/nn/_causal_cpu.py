"""Causal attention of many queries on CPUs, for inference: blocks of queries, each with all the keys it sees."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.precision import widen

__all__ = ["causal_attention", "is_faster"]

_BLOCK = 64  # queries of a head
_FEWEST, _MOST = 192, 1024  # the fewest queries and the most keys for which it is faster
_LEAST, _LARGEST = 1 << 11, 1 << 16
"""Keys of all heads and rows: below, calls take longer than the work; above, the weights do not fit in the cache."""


def is_faster(q: Float[Tensor, "b n h d"], k: Float[Tensor, "b m k d"], v: Float[Tensor, "b m k e"]) -> bool:
    """Whether `causal_attention` supports these inputs, and is faster than torch's kernel."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if not q.dtype == k.dtype == v.dtype:
        return False
    learning = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    (b, n, h, _), m = q.shape, k.shape[1]
    return n >= _FEWEST and m <= _MOST and _LEAST <= b * h * m <= _LARGEST and not learning


def causal_attention(
    q: Float[Tensor, "b n h d"], k: Float[Tensor, "b m k d"], v: Float[Tensor, "b m k e"], scale: float | None = None
) -> Float[Tensor, "b n h e"]:
    """Return softmax(q kᵀ · scale) v, where the queries stand at the last keys, and none sees a later key.

    Source: arXiv 1706.03762, Section 3.2.1 and Section 3.2.3.

    Query head i reads key/value head i // (h / k). `scale` defaults to d^−½. Everything is computed in float32 at
    least and returned in q's dtype, without gradients. The library multiplies a block for all heads of a group at once,
    and later blocks are skipped: one prompt takes 0.6 to 0.75 times as long as with torch's kernel
    (`benchmarks/attend.py`).
    """
    (b, n, h, d), (_, m, groups, e) = q.shape, v.shape
    factor: float = d**-0.5 if scale is None else scale
    keys, values = (widen(x.transpose(1, 2)).contiguous().flatten(0, 1) for x in (k, v))
    later = keys.new_ones((_BLOCK, _BLOCK), dtype=torch.bool).triu(1).repeat_interleave(h // groups, 0)
    room = keys.new_empty(b * h * min(n, _BLOCK) * m)  # for the weights of one block after another
    out = q.new_empty(b, n, h, e)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for i in range(0, n, _BLOCK):
            j = min(n, i + _BLOCK)
            seen = m - n + j
            queries = widen(_grouped(q[:, i:j], groups)).contiguous().flatten(2, 3).flatten(0, 1)
            weights = room[: b * h * (j - i) * seen].view(*queries.shape[:2], seen)
            torch.baddbmm(weights, queries, keys[:, :seen].mT, beta=0, alpha=factor, out=weights)
            weights[:, :, i - j :].masked_fill_(later[: queries.shape[1], : j - i], float("-inf"))
            torch.softmax(weights, -1, out=weights)
            found = (weights @ values[:, :seen]).unflatten(0, (b, groups)).unflatten(2, (j - i, -1))
            _grouped(out[:, i:j], groups).copy_(found)
    return out


def _grouped(x: Float[Tensor, "b s h d"], groups: int) -> Float[Tensor, "b k s r d"]:
    """`x` with the heads of a group side by side, as if they were further queries of one head."""
    return x.unflatten(2, (groups, -1)).transpose(1, 2)
