"""Sliding-window attention: a token sees the last few tokens only, and the cache keeps no more than those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec
from axon_core.nn import QKV, attend


@dataclass(frozen=True)
class Window:
    """Keys less than `size` positions away; both sides where the scope is not causal."""

    size: int

    def __call__(self, query: Int[Tensor, "b 1 n 1"], key: Int[Tensor, "b 1 1 m"]) -> Bool[Tensor, "b 1 n m"]:
        """Return which keys are inside the window of which queries."""
        return (query - key).abs() < self.size


class SlidingWindowAttention(Attention):
    """Multi-head attention over the last `window` tokens: softmax(q_i k_jᵀ / √d_h) v_j for |i − j| < window.

    Sources: arXiv 2004.05150, Section 3.1; arXiv 2310.06825, Section 2 (sliding window attention, rolling buffer
    cache).
    """

    class Config(Attention.Config):
        """Sizes of sliding-window attention."""

        window: PositiveInt = 4096
        """How many tokens a token sees, itself included (arXiv 2310.06825, Table 1)."""

    config: Config
    cross = False
    examples = ({"window": 3},)

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c = config
        self.window = Window(c.window)
        self.qkv = QKV(c.dim, c.n_heads, c.n_heads, c.head_dim)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token gathers from the window that ends with it."""
        q, k, v = self.qkv(x)
        q, k = scope.rotate(self.rotary, q, k)
        k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        return self.out(attend(q, k, v, scope, narrow=self.window).flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        """Keys and values of the tokens that a later token can still see."""
        per_token = StateSpec((self.config.n_heads, self.config.head_dim), window=self.config.window)
        return {"k": per_token, "v": per_token}
