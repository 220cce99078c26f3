"""Multi-head latent attention: keys and values of all heads are kept as one small latent vector a token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from axon_core import NORMS
from axon_core.interfaces import Attention, LayerCache, RotaryEmbedding, Scope, StateSpec
from axon_core.nn import attend


class LatentAttention(Attention):
    """Multi-head latent attention: k_i = [W_UK,i c; k_R], v_i = W_UV,i c, with the latent c = norm(W_DKV x).

    Only c and the rotated key k_R, which all heads share, are kept. While decoding, W_UK and W_UV are applied to the
    query and to the result instead of to every kept token. Source: arXiv 2405.04434, Sections 2.1.2 and 2.1.3.
    """

    class Config(Attention.Config):
        """Sizes of multi-head latent attention."""

        latent_dim: PositiveInt = Field(default_factory=lambda given: 4 * given["head_dim"])
        """Features d_c of the latent of keys and values; by default 4 d_h (Section 2.1.4)."""
        rope_dim: PositiveInt = Field(default_factory=lambda given: given["head_dim"] // 2)
        """Features of the rotated part of queries and keys; by default d_h / 2 (Section 2.1.4)."""
        query_latent_dim: PositiveInt | None = None
        """Features d'_c of the latent of queries (Eqs. 12 and 13); None does not compress them (Appendix B)."""

        @property
        def rotary_dim(self) -> int:
            """The decoupled part alone is rotated."""
            return self.rope_dim

    config: Config
    cross = False
    examples = ({}, {"query_latent_dim": 12})

    def __init__(self, config: Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        c, q_dim = config, config.n_heads * (config.head_dim + config.rope_dim)
        if c.query_latent_dim is None:
            self.query = nn.Linear(c.dim, q_dim, bias=False)
        else:  # the norms of both latents: Section 3.1.2
            down = nn.Linear(c.dim, c.query_latent_dim, bias=False)
            norm = NORMS.build("rmsnorm", dim=c.query_latent_dim)
            self.query = nn.Sequential(down, norm, nn.Linear(c.query_latent_dim, q_dim, bias=False))
        self.down = nn.Linear(c.dim, c.latent_dim + c.rope_dim, bias=False)
        self.norm = NORMS.build("rmsnorm", dim=c.latent_dim)
        self.up_k = nn.Linear(c.latent_dim, c.n_heads * c.head_dim, bias=False)
        self.up_v = nn.Linear(c.latent_dim, c.n_heads * c.head_dim, bias=False)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what each token gathers; without a cache from full keys and values, with one from the latents."""
        c, heads = self.config, (self.config.n_heads, -1)
        q, q_rope = self.query(x).unflatten(-1, heads).split((c.head_dim, c.rope_dim), -1)
        latent, k_rope = self.down(x).unsqueeze(2).split((c.latent_dim, c.rope_dim), -1)  # (b n 1 ·)
        latent = self.norm(latent)
        q_rope, k_rope = scope.rotate(self.rotary, q_rope, k_rope)
        if cache is None:
            k, v = (up(latent.squeeze(2)).unflatten(-1, heads) for up in (self.up_k, self.up_v))
            k = torch.cat((k, k_rope.expand(-1, -1, c.n_heads, -1)), -1)
            result = attend(torch.cat((q, q_rope), -1), k, v, scope)
        else:
            w_k, w_v = (up.weight.unflatten(0, heads) for up in (self.up_k, self.up_v))  # (h d c)
            (kept,) = cache.append(latent=torch.cat((latent, k_rope), -1).squeeze(2))
            k = kept.unsqueeze(2)
            q = torch.cat((torch.einsum("bnhd,hdc->bnhc", q, w_k), q_rope), -1)
            mixed = attend(q, k, k[..., : c.latent_dim], scope, scale=(c.head_dim + c.rope_dim) ** -0.5)
            result = torch.einsum("bnhc,hdc->bnhd", mixed, w_v)
        return self.out(result.flatten(-2))

    def state(self) -> Mapping[str, StateSpec]:
        """The latent and the rotated key of a token, for all heads together."""
        return {"latent": StateSpec((self.config.latent_dim + self.config.rope_dim,))}
