"""Grouped-query and multi-query attention: groups of query heads share one key head and one value head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from axon_core import NORMS
from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec, TensorSplit
from axon_core.nn import QKV, Linear, attend
from axon_core.registry import Spec, part

_MOST = 65_536  # most heads that an attention may have


class GroupedQueryAttention(Attention):
    """Grouped-query attention `(b n d) -> (b n d)`: query head i reads key/value head i // (h / k).

    Between multi-head attention (k = h) and multi-query attention (k = 1): the cache shrinks by a factor of h / k.
    Cross-attention to a `memory` does not rotate. Source: arXiv 2305.13245, Section 2.2.
    """

    class Config(Attention.Config):
        """Sizes of grouped-query attention; `ConfigError` if the key/value heads do not divide the query heads."""

        n_kv_heads: PositiveInt = Field(default_factory=lambda given: _largest_proper_divisor(given["n_heads"]))
        """Key/value heads k, the groups G of Section 2.2; by default the fewest groups short of multi-head attention
        that divide the heads: h / 2 for an even h."""
        bias: bool | Literal["qkv"] = False
        """Whether the four projections add a bias, or those of queries, keys and values alone, as in Qwen2."""
        qk_norm: Spec | None = None
        """Norm of every query and key head before the rotation, after arXiv 2010.04245, which normalises them to length
        1 and learns the scale; by default none, as in Llama."""

        @field_validator("n_kv_heads")
        @classmethod
        def _divides(cls, n_kv_heads: int, info: ValidationInfo) -> int:
            n_heads = info.data.get("n_heads", n_kv_heads)  # absent if it is itself wrong, which is reported there
            if n_heads % n_kv_heads:
                raise ValueError(
                    f"n_kv_heads must divide n_heads, but {n_heads} % {n_kv_heads} = {n_heads % n_kv_heads}; "
                    f"{n_heads} heads allow {', '.join(map(str, _divisors(n_heads)))}"
                )
            return n_kv_heads

    config: Config
    examples = ({}, {"n_kv_heads": 1, "bias": True}, {"bias": "qkv"})

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c = config
        self.qkv = QKV(c.dim, c.n_heads, c.n_kv_heads, c.head_dim, bias=bool(c.bias))
        self.q_norm = part(c, "qk_norm", NORMS, dim=c.head_dim) if c.qk_norm else nn.Identity()
        self.k_norm = part(c, "qk_norm", NORMS, dim=c.head_dim) if c.qk_norm else nn.Identity()
        self.out = Linear(c.n_heads * c.head_dim, c.dim, bias=c.bias is True)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return W_O concat_i(softmax(q_i k_{i // r}ᵀ / √d_h) v_{i // r}), with r = h / k."""
        if memory is None:
            q, k, v = self.qkv(x)
            q, k = scope.rotate(self.rotary, self.q_norm(q), self.k_norm(k))
            k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        else:
            q = self.q_norm(self.qkv.query(x))
            k, v = self._of(memory) if cache is None else cache.once(lambda: self._of(memory))
        return self.out(attend(q, k, v, scope).flatten(-2))

    def _of(self, memory: Float[Tensor, "b m d"]) -> tuple[Float[Tensor, "b m k d"], Float[Tensor, "b m k d"]]:
        k, v = self.qkv.key_value(memory)
        return self.k_norm(k), v

    def state(self) -> Mapping[str, StateSpec]:
        """Keys and values, one per key/value head: h / k times fewer than multi-head attention keeps."""
        per_token = StateSpec((self.qkv.heads[1], self.config.head_dim))
        return {"k": per_token, "v": per_token}

    def tensor_split(self) -> TensorSplit:
        """Each process has the queries of its key/value heads."""
        return TensorSplit(columns=["qkv"], rows=["out"], units=self.config.n_kv_heads, unit="key/value heads")


class MultiQueryAttention(GroupedQueryAttention):
    """Multi-query attention: grouped-query attention with one group, as Section 2.2 defines it.

    All query heads share a single key head and value head. Source: arXiv 1911.02150; arXiv 2305.13245, Section 2.2.
    """

    class Config(GroupedQueryAttention.Config):
        """Sizes of multi-query attention."""

        n_kv_heads: PositiveInt = Field(default=1, le=1)
        """Key/value heads: always one."""

    examples = ({},)


def _divisors(n: int) -> list[int]:
    return [divisor for divisor in range(1, min(n, _MOST) + 1) if n % divisor == 0]


def _largest_proper_divisor(n: int) -> int:
    return next((n // divisor for divisor in range(2, min(n, _MOST) + 1) if n % divisor == 0), 1)
