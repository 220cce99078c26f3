"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from axon_core import NORMS
from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec, TensorSplit
from axon_core.nn import QKV, Linear, attend
from axon_core.registry import Spec, part


class MultiHeadAttention(Attention):
    """Multi-head attention `(b n d) -> (b n d)`: W_O concat_i(softmax(q_i k_iᵀ / √d_h) v_i).

    Cross-attention to a `memory` does not rotate. Source: arXiv 1706.03762, Section 3.2.2.
    """

    class Config(Attention.Config):
        """Sizes of multi-head attention; the paper's base model has dim 512 and 8 heads (Section 3.2.2)."""

        bias: bool = False
        """Whether the four projections add a bias; the paper's formulas have none (Section 3.2.2)."""
        qk_norm: Spec | None = None
        """Norm of every query and key head before the rotation, after arXiv 2010.04245, which normalises them to length
        1 and learns the scale; by default none, as in the paper."""

    config: Config
    examples = ({}, {"bias": True, "qk_norm": "layernorm"})

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c = config
        self.qkv = QKV(c.dim, c.n_heads, c.n_heads, c.head_dim, bias=c.bias)
        self.q_norm = part(c, "qk_norm", NORMS, dim=c.head_dim) if c.qk_norm else nn.Identity()
        self.k_norm = part(c, "qk_norm", NORMS, dim=c.head_dim) if c.qk_norm else nn.Identity()
        self.out = Linear(c.n_heads * c.head_dim, c.dim, bias=c.bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token of `x` gathers, with all heads, from the tokens it may see."""
        if memory is None:
            q, k, v = self.qkv(x)
            q, k = scope.rotate(self.rotary, self.q_norm(q), self.k_norm(k))
            k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        else:
            q = self.q_norm(self.qkv.query(x))
            k, v = self._of(memory) if cache is None else cache.once(lambda: self._of(memory))
        return self.out(attend(q, k, v, scope).flatten(-2))

    def _of(self, memory: Float[Tensor, "b m d"]) -> tuple[Float[Tensor, "b m h d"], Float[Tensor, "b m h d"]]:
        k, v = self.qkv.key_value(memory)
        return self.k_norm(k), v

    def state(self) -> Mapping[str, StateSpec]:
        """Keys and values of every head."""
        per_token = StateSpec((self.qkv.heads[1], self.config.head_dim))
        return {"k": per_token, "v": per_token}

    def tensor_split(self) -> TensorSplit:
        """Each process has some of the heads."""
        return TensorSplit(columns=["qkv"], rows=["out"], units=self.config.n_heads, unit="heads")
