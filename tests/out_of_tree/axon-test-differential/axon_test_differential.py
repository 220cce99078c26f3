"""Differential attention: the difference of two softmax maps, in which what both attend to cancels out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor, nn

from axon_core import NORMS
from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec
from axon_core.nn import QKV, attend


class DifferentialAttention(Attention):
    """Differential attention: (softmax(Q₁K₁ᵀ / √d) − λ softmax(Q₂K₂ᵀ / √d)) V, normalised head by head.

    A head's value has 2d = head_dim features, and each of its two queries and keys has d. Source: arXiv 2410.05258,
    Section 2.1, Eqs. 1-3.
    """

    class Config(Attention.Config):
        """Sizes of differential attention."""

        @field_validator("head_dim")
        @classmethod
        def _halves(cls, head_dim: int) -> int:
            if head_dim % 2:
                raise ValueError(f"head_dim must be even: a head has two queries of half its size, got {head_dim}")
            return head_dim

        @property
        def rotary_dim(self) -> int:
            """Every feature of the half-sized queries and keys is rotated."""
            return self.head_dim // 2

    config: Config

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c, d = config, config.head_dim // 2
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * c.layer)  # λ_init = 0.8 − 0.6 exp(−0.3 (l − 1)), l from 1
        self.qkv = QKV(c.dim, 2 * c.n_heads, 2 * c.n_heads, d)
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(0.1 * torch.randn(d)) for _ in range(4))
        self.norm = NORMS.build("rmsnorm", dim=c.head_dim)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token gathers with the difference of the two maps."""
        if memory is None:
            q, k, v = self.qkv(x)
            q, k = scope.rotate(self.rotary, q, k)
            k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        else:
            q = self.qkv.query(x)
            k, v = self.qkv.key_value(memory) if cache is None else cache.once(lambda: self.qkv.key_value(memory))
        v = v.unflatten(2, (-1, 2)).flatten(-2)  # (b m h 2d)
        first = attend(q[:, :, 0::2], k[:, :, 0::2], v, scope)
        second = attend(q[:, :, 1::2], k[:, :, 1::2], v, scope)
        heads = self.norm(first - self._lambda().to(v.dtype) * second)
        return self.out((1 - self.initial) * heads.flatten(-2))  # Eq. 3

    def state(self) -> Mapping[str, StateSpec]:
        """Both keys, and the value, of every head."""
        per_token = StateSpec((2 * self.config.n_heads, self.config.head_dim // 2))
        return {"k": per_token, "v": per_token}

    def _lambda(self) -> Float[Tensor, ""]:
        """λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init (Eq. 2), in float32."""
        first, second = ((a.float() * b.float()).sum().exp() for a, b in ((self.q1, self.k1), (self.q2, self.k2)))
        return first - second + self.initial
