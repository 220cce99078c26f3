"""ALiBi: no position embedding; the scores lose a fixed amount for every token of distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec
from axon_core.nn import QKV, attend


def slopes(n_heads: int) -> list[float]:
    """Return each head's slope: 2^(−8 i / h) for head i = 1 … h, where h is a power of two (Section 3).

    Otherwise those of the power of two below, then every second one of the power of two above (the authors' code).
    """
    below = 2 ** (n_heads.bit_length() - 1)
    first = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    return first + [2 ** (-8 * i / (2 * below)) for i in range(1, 2 * (n_heads - below), 2)]


@dataclass(frozen=True)
class Distance:
    """The bias −slope · |query − key| of each head."""

    n_heads: int

    def __call__(self, query: Int[Tensor, "b 1 n 1"], key: Int[Tensor, "b 1 1 m"]) -> Float[Tensor, "b h n m"]:
        """Return what is added to the scores."""
        slope = torch.tensor(slopes(self.n_heads), device=query.device)
        return -slope[:, None, None] * (query - key).abs()


class AlibiAttention(Attention):
    """Attention with linear biases: softmax(q_i k_jᵀ / √d_h − slope · (i − j)) v_j.

    Source: arXiv 2108.12409, Section 3.
    """

    class Config(Attention.Config):
        """Sizes of attention with linear biases."""

        @property
        def rotary_dim(self) -> int:
            """None: the biases are all that knows about positions (Section 3)."""
            return 0

    cross = False

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c = config
        self.distance = Distance(c.n_heads)
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
        """Return what each token gathers, near tokens preferred."""
        q, k, v = self.qkv(x)
        k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        return self.out(attend(q, k, v, scope, bias=self.distance).flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        """Keys and values of every head."""
        per_token = StateSpec((self.config.n_heads, self.config.head_dim))
        return {"k": per_token, "v": per_token}
