"""Softmax attention under a scope, lowered to the cheapest kernel that computes it; and the usual projections."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from axon_core.interfaces.scope import Between, Scope
from axon_core.nn._causal_cpu import causal_attention, is_faster
from axon_core.nn.linear import StackedLinear
from axon_core.precision import wide_dtype


def attend(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k e"],
    scope: Scope,
    *,
    scale: float | None = None,
    narrow: Between | None = None,
    bias: Between | None = None,
) -> Float[Tensor, "b n h e"]:
    """Return softmax(q kᵀ · scale + bias) v over the keys that are visible in `scope`.

    Source: arXiv 1706.03762, Section 3.2.1.

    Query head i reads key/value head i // (h / k). The keys are the last m of the scope's keys, so that a cache with
    a window may hand over fewer. `scale` defaults to d^−½. `narrow` hides further keys from a query, but never its own;
    `bias` is added to the scores (b h n m). The softmax is computed in float32 at least.

    Both are evaluated once for all layers that pass an equal function, and kept until the pass ends (`Scope.once`). A
    function that depends on data, such as a forget gate of the tokens, must therefore be created in each call:

        bias=lambda query, key: gate        # gate `(b h n m)`, computed in this call from this layer's tokens

    A method, a module or a dataclass that holds the data may equal an earlier one, whose values would then be reused.

    A scope that has a `kernel` of its own computes all of this with it.
    """
    if scope.kernel is not None:
        return scope.kernel(q, k, v, scale=scale, narrow=narrow, bias=bias)
    if narrow is None and bias is None and scope.triangular(k.shape[1]) and is_faster(q, k, v):
        return causal_attention(q, k, v, scale)
    device = q.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    half = q.dtype.itemsize < 4 or autocast
    if not half or (device != "cpu" and bias is None):
        return _attend(q, k, v, scope, scale, narrow, bias)
    # In float32 instead: torch's half-precision kernel for CPUs is several times slower, especially backward over short
    # rows (7.4 against 2.3 ms) and for a single query (0.68 against 0.18 ms; benchmarks/attend.py).
    # A bias is added in float32 on every device: half precision would round its larger values.
    wide = wide_dtype(q.dtype)
    with torch.autocast(device, enabled=False):
        return _attend(q.to(wide), k.to(wide), v.to(wide), scope, scale, narrow, bias).to(q.dtype)


def _attend(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k e"],
    scope: Scope,
    scale: float | None,
    narrow: Between | None,
    bias: Between | None,
) -> Float[Tensor, "b n h e"]:
    (_, n, h, _), (_, m, groups, _) = q.shape, k.shape
    mask, is_causal = None, False
    if narrow is None and bias is None and n == m and scope.triangular(m):
        is_causal = n > 1
    elif narrow is not None or not scope.sees_all(m):
        mask = scope.mask(m, narrow)
    if bias is not None:
        scores = scope.bias(m, bias, q.dtype)
        mask = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if n > 1 or h == groups:
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=h != groups
        )
        return out.transpose(1, 2)
    # A single query: the heads of a group are the queries of one head, so that the cache is read once, not r times.
    q = q.reshape(-1, groups, h // groups, q.shape[-1])
    if mask is not None and mask.shape[1] > 1:
        mask = mask.unflatten(1, (groups, -1)).flatten(2, 3)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.flatten(1, 2).unsqueeze(1)


class QKV(nn.Module):
    """The three projections of attention as one matrix product: `(b n d) -> (b n h d'), (b m k d'), (b m k d')`.

    The rows of `weight` are those of W_Q, then W_K, then W_V, each head's rows together.
    """

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        rows = [h * head_dim for h in (n_heads, n_kv_heads, n_kv_heads)]
        self.projection = StackedLinear(dim, rows, bias=bias, names="qkv")

    @property
    def heads(self) -> tuple[int, int, int]:
        """How many heads of queries, keys and values this process computes: all, unless they are divided."""
        divided_by = getattr(self.projection, "divided_by", 1)  # an 8-bit or packed projection never is
        q, k, v = (rows // divided_by // self.head_dim for rows in self.projection.rows)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m d"] | None = None
    ) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b m k d"], Float[Tensor, "b m k d"]]:
        """Return queries of `x`, and keys and values of `memory`, or of `x` itself if that is None."""
        if memory is not None:
            return (self.query(x), *self.key_value(memory))
        q, k, v = (self._heads(part, x) for part in self.projection(x))
        return q, k, v

    def query(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n h d"]:
        """Return the queries of `x` alone, for cross-attention."""
        return self._heads(self.projection.compute_maps(x, 0, 1), x)

    def key_value(self, memory: Float[Tensor, "b m d"]) -> tuple[Float[Tensor, "b m k d"], Float[Tensor, "b m k d"]]:
        """Return the keys and values of a `memory`, which a cache may keep (`LayerCache.once`)."""
        keys, values = self.projection.compute_maps(memory, 1, 3).chunk(2, -1)
        return self._heads(keys, memory), self._heads(values, memory)

    def _heads(self, part: Float[Tensor, "b n hd"], x: Tensor) -> Float[Tensor, "b n h d"]:
        if x.device.type == "cpu":  # `attend` needs that dtype here: cast once, if autocast narrowed them
            part = part.to(x.dtype)
        return part.unflatten(-1, (-1, self.head_dim))
