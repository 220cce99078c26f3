"""Linear attention: a feature map instead of the softmax, so that decoding keeps one matrix a head, however long."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import elu

from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec
from axon_core.nn import QKV


class LinearAttention(Attention):
    """Linear attention: φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j), with φ(x) = elu(x) + 1.

    While decoding, the sums S = Σ φ(k) vᵀ and z = Σ φ(k) are the state (Eqs. 18 and 19). The tokens of one pass use
    the equal quadratic form, which honours any scope. Source: arXiv 2006.16236, Sections 3.2 and 3.4.
    """

    class Config(Attention.Config):
        """Sizes of linear attention."""

        eps: PositiveFloat = 1e-6
        """ε added to the denominator (the authors' code)."""

        @property
        def rotary_dim(self) -> int:
            """None: a rotation would break the positivity of φ."""
            return 0

    config: Config
    cross = False

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c = config
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
        """Return what each token gathers from the tokens of `x`, and from the state that earlier ones left."""
        q, k, v = (part.float() for part in self.qkv(x))
        q, k = elu(q) + 1, elu(k) + 1  # Eq. 7
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) * scope.mask(x.shape[1])
        result = torch.einsum("bhnm,bmhe->bnhe", weights, v)
        total = weights.sum(-1).transpose(1, 2)
        if cache is not None:
            s, z = cache["s"], cache["z"]
            result = result + torch.einsum("bnhd,bhde->bnhe", q, s)
            total = total + torch.einsum("bnhd,bhd->bnh", q, z)
            if scope.valid is not None:
                k = k * scope.valid[:, :, None, None]
            cache["s"] = s + torch.einsum("bnhd,bnhe->bhde", k, v)
            cache["z"] = z + k.sum(1)
        heads = (result / (total + self.config.eps).unsqueeze(-1)).to(x.dtype)
        return self.out(heads.flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        """The sums of all tokens so far, in float32 because they only grow."""
        h, d = self.config.n_heads, self.config.head_dim
        return {
            "s": StateSpec((h, d, d), per_token=False, dtype=torch.float32),
            "z": StateSpec((h, d), per_token=False, dtype=torch.float32),
        }
