"""Attention of packed queries over keys and values in blocks: a token's result has the same bits in any company."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.errors import UsageError
from axon_core.interfaces.scope import Between
from axon_core.nn._native import compile_kernels, library
from axon_core.precision import wide_dtype

__all__ = ["attend_blocks", "scores_between"]


def attend_blocks(
    q: Float[Tensor, "n h d"],
    keys: Float[Tensor, "blocks size k d"],
    values: Float[Tensor, "blocks size k e"],
    tables: Int[Tensor, "b most"],
    rows: Int[Tensor, " n"],
    seen: Int[Tensor, " n"],
    *,
    window: int | None = None,
    scale: float | None = None,
    bias: Float[Tensor, "n h m"] | None = None,
) -> Float[Tensor, "n h e"]:
    """Return softmax(q kᵀ · scale + bias) v of n tokens, which may belong to several sequences.

    Source: arXiv 1706.03762, Section 3.2.1.

    Token i belongs to sequence `rows[i]` and sees its first `seen[i]` keys, its own included: its position + 1; with a
    `window` w, the last w of these. Key j of sequence s is `keys[tables[s, j // size], j % size]`; entries of a table
    that no token sees may have any value. Query head i reads key/value head i // (h / k). `scale` defaults to d^−½.
    `bias` is added to the scores of the first m keys, −∞ hides a key (`scores_between`); its second axis may be 1.

    A token's scores, their softmax and the weighted values are computed in float32 at least, for each token by itself
    and in the order of the keys, so that decoding, a piece of a prompt and a whole prompt return the same bits. A token
    that sees nothing (`seen` 0) gets zeros. On an accelerator it is plain torch, token by token, which no test here has
    run.

    Raises:
        UsageError: a gradient is asked for; sizes do not fit.
    """
    if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad or values.requires_grad):
        raise UsageError("attention over blocks has no gradients; run it under torch.inference_mode(), or use `attend`")
    (n, h, d), groups = q.shape, keys.shape[2]
    if h % groups or keys.shape[3] != d or values.shape[:3] != keys.shape[:3] or len(rows) != n or len(seen) != n:
        raise UsageError(
            "q (n h d), keys (blocks size k d), values (blocks size k e), rows (n) and seen (n) must fit, with h a "
            f"multiple of k; got {tuple(q.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}, {len(rows)}, {len(seen)}"
        )
    if window is not None and window < 1:
        raise UsageError(f"a window must be at least 1, got {window}")
    compile_kernels()
    factor = d**-0.5 if scale is None else scale
    narrow = (torch.float32, torch.bfloat16)
    tables, rows, seen = (x.to(torch.int32) for x in (tables, rows, seen))
    if q.device.type == "cpu" and q.dtype in narrow and keys.dtype == values.dtype and keys.dtype in narrow:
        index = tables.contiguous(), rows.contiguous(), seen.contiguous()
        added = None if bias is None else bias.float().contiguous()
        return torch.ops.axon.attend_blocks(q.contiguous(), keys, values, *index, window, factor, added)
    return _plain_attention(q, keys, values, tables, rows, seen, window, factor, bias)


def scores_between(
    seen: Int[Tensor, " n"],
    m: int,
    *,
    narrow: Between | None = None,
    bias: Between | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n h m"]:
    """Return what `attend` would add to the scores of the first m keys: `bias`, and −∞ where `narrow` is false.

    Token i stands at position `seen[i]` − 1, and key j at j. The second axis is 1 where neither depends on the head.
    """
    query, key = (seen - 1).view(-1, 1, 1, 1), torch.arange(m, device=seen.device).view(1, 1, 1, -1)
    scores = torch.zeros(len(seen), 1, 1, m, dtype=wide_dtype(dtype), device=seen.device)
    if bias is not None:
        scores = scores + bias(query, key)
    if narrow is not None:
        scores = scores.masked_fill(~narrow(query, key), float("-inf"))
    return scores.squeeze(2)


def _plain_attention(
    q: Float[Tensor, "n h d"],
    keys: Float[Tensor, "blocks size k d"],
    values: Float[Tensor, "blocks size k e"],
    tables: Int[Tensor, "b most"],
    rows: Int[Tensor, " n"],
    seen: Int[Tensor, " n"],
    window: int | None,
    scale: float,
    bias: Float[Tensor, "n h m"] | None,
) -> Float[Tensor, "n h e"]:
    """`attend_blocks` in plain torch, one token after the other."""
    (n, h, _), (_, size, groups, e) = q.shape, values.shape
    wide = wide_dtype(q.dtype)
    out = q.new_zeros(n, h, e)
    for i, (row, last) in enumerate(zip(rows.tolist(), seen.tolist(), strict=True)):
        first = 0 if window is None else max(0, last - window)
        if last <= first:
            continue
        table = tables[row, first // size : -(-last // size)]
        at = slice(first % size, first % size + last - first)
        k, v = (x[table].flatten(0, 1)[at].transpose(0, 1).to(wide).contiguous() for x in (keys, values))
        scores = q[i].to(wide).unflatten(0, (groups, -1)) @ k.mT * scale
        if bias is not None:
            scores += bias[i, :, first:last].expand(h, -1).unflatten(0, (groups, -1))
        out[i] = (scores.softmax(-1) @ v).flatten(0, 1).to(q.dtype)
    return out


library.define(
    "attend_blocks(Tensor q, Tensor keys, Tensor values, Tensor tables, Tensor rows, Tensor seen, int? window, "
    "float scale, Tensor? bias) -> Tensor"
)
library.impl("attend_blocks", _plain_attention, "CompositeExplicitAutograd")


def _shape(q: Tensor, keys: Tensor, values: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], values.shape[3])


torch.library.register_fake("axon::attend_blocks", _shape, lib=library)
