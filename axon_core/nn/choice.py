"""The most likely tokens of each row of scores."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.errors import UsageError
from axon_core.nn._native import library
from axon_core.precision import widen

__all__ = ["best_tokens"]

_KERNELS = (torch.float32, torch.bfloat16)


def best_tokens(
    logits: Float[Tensor, "n v"], k: int, *, limit: int | None = None, without: int | None = None
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Return log-probabilities and ids of each row's k most likely tokens, the likeliest first.

    They are chosen among the first `limit` tokens (by default all v), never token `without`; all v have a share of the
    probability. Of equally likely ones the smaller id comes first. Where fewer can be chosen, the rest have
    log-probability −∞. Computed in float32 at least, for each row by itself. A row with a NaN, or with +∞, gets NaN.

    The rows are read twice; a sort of them takes many times as long. Once the kernels are loaded (`pack_products`,
    `attend_blocks`), this is one of them; until then, and on an accelerator, it is plain torch.

    Raises:
        UsageError: k is not in 1 … limit, or `limit` not in 1 … v.
    """
    v = logits.shape[1]
    most = v if limit is None else limit
    if not 1 <= k <= most <= v:
        raise UsageError(f"k and limit must fit, 1 ≤ k ≤ limit ≤ {v}, got k {k} and limit {most}")
    run = torch.ops.axon.best_tokens if logits.device.type == "cpu" and logits.dtype in _KERNELS else _plain_best
    return run(logits.contiguous(), k, most, -1 if without is None else without)


def _plain_best(logits: Float[Tensor, "n v"], k: int, limit: int, without: int) -> tuple[Tensor, Tensor]:
    """`best_tokens` in plain torch."""
    logits = widen(logits)
    most = logits.amax(-1, keepdim=True)
    total = logits.logsumexp(-1, keepdim=True) + (most - most)  # NaN for a row with an infinity that is its largest
    logits = logits[:, :limit]
    if 0 <= without < limit:
        logits = logits.index_fill(-1, torch.tensor(without, device=logits.device), -torch.inf)
    scores, ids = logits.topk(k)
    return scores - total, ids


library.define("best_tokens(Tensor logits, int k, int limit, int without) -> (Tensor, Tensor)")
library.impl("best_tokens", _plain_best, "CompositeExplicitAutograd")


def _shape(logits: Tensor, k: int, limit: int, without: int) -> tuple[Tensor, Tensor]:
    n = logits.shape[0]
    return logits.new_empty(n, k, dtype=torch.float32), logits.new_empty(n, k, dtype=torch.long)


torch.library.register_fake("axon::best_tokens", _shape, lib=library)
