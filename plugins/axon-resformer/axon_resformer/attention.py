"""Grouped-query attention whose values are mixed with those of the first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from axon_core import UsageError
from axon_core.interfaces import LayerCache, RotaryEmbedding, Scope
from axon_core.nn import attend
from axon_gqa import GroupedQueryAttention

__all__ = ["ValueResidualAttention", "mix_values"]

_FIRST = "axon-resformer: the values of the first layer"


class ValueResidualAttention(GroupedQueryAttention):
    """Grouped-query attention with a value residual, `(b n d) -> (b n d)`: V ← (1 − λ) V + λ V_1.

    V_1 are the values of layer 0, which is plain grouped-query attention, and λ a learned weight of each later layer;
    in a model with another attention in layer 0, V_1 is 0. The mixed values are what a cache keeps, so that decoding
    stores nothing more. It is not defined for cross-attention. Source: ResFormer, arXiv 2410.17897, Abstract.

    Raises:
        UsageError: the first layer's values have another shape.
    """

    class Config(GroupedQueryAttention.Config):
        """Sizes of grouped-query attention, and the weight that the first layer's values start with."""

        first_weight: float = Field(default=0.5, ge=0, le=1)
        """λ at the start, in every layer but the first."""

    config: Config
    cross = False
    examples = ({}, {"layer": 1}, {"layer": 1, "n_kv_heads": 1})

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.first_weight = nn.Parameter(torch.tensor([config.first_weight])) if config.layer else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what grouped-query attention returns with the mixed values."""
        q, k, v = self.qkv(x)
        if self.first_weight is None:
            scope.shared[_FIRST] = v
        else:
            first = scope.shared.get(_FIRST)
            v = mix_values(v, torch.zeros_like(v) if first is None else first, self.first_weight)
        q, k = scope.rotate(self.rotary, self.q_norm(q), self.k_norm(k))
        k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        return self.out(attend(q, k, v, scope).flatten(-2))


def mix_values(
    v: Float[Tensor, "b n k d"], first: Float[Tensor, "b n k d"], weight: Float[Tensor, " 1"]
) -> Float[Tensor, "b n k d"]:
    """Return (1 − λ) V + λ V_1. Source: arXiv 2410.17897, Abstract (value residual connections).

    Raises:
        UsageError: the first layer's values have another shape.
    """
    if first.shape != v.shape:
        raise UsageError(
            f"a value residual needs key/value heads of one size in all layers, but the first layer has "
            f"{first.shape[2]} of {first.shape[3]} features, and a later one {v.shape[2]} of {v.shape[3]}; give "
            "both the same"
        )
    return torch.lerp(v, first, weight.to(v.dtype))
