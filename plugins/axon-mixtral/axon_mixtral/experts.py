"""A sparse mixture of experts: of several feed-forwards, each token is sent to a few."""

from __future__ import annotations

from typing import Self

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from axon_core import Count, wide_dtype
from axon_core.interfaces import Scope
from axon_core.nn import Linear, add_auxiliary_loss
from axon_core.registry import Spec, part
from axon_xllama.feed_forward import FEED_FORWARDS, FeedForwardLayer

__all__ = ["MixtureOfExperts", "load_balance"]


class MixtureOfExperts(FeedForwardLayer):
    """A mixture of experts, `(b n d) -> (b n d)`: y = Σ_i softmax(top_k(x W_g))_i E_i(x).

    The k experts of the largest scores compute a token; the softmax is over their scores alone. All experts see all
    tokens of a compiled pass, where shapes must be known, with weight 0 but for their own: the same result, for more
    work. While training, it adds `balance` times `load_balance` to the loss. Source: arXiv 2401.04088, Section 2.1.
    """

    class Config(FeedForwardLayer.Config):
        """Sizes of a mixture of experts, by default those of Mixtral (arXiv 2401.04088, Table 1)."""

        n_experts: Count = 8
        """Number of experts E."""
        top_k: PositiveInt = 2
        """How many experts k compute a token."""
        expert: Spec = Spec(type="swiglu")
        """The feed-forward of each expert, with the hidden features of the model."""
        balance: NonNegativeFloat = Field(default=0.01)
        """What the load-balancing loss is multiplied by (arXiv 2101.03961, Section 2.2: α = 0.01); 0 for none."""

        @model_validator(mode="after")
        def _enough(self) -> Self:
            if self.top_k > self.n_experts:
                raise ValueError(f"top_k must be at most n_experts, got {self.top_k} > {self.n_experts}")
            return self

    config: Config
    examples = ({"n_experts": 4}, {"n_experts": 3, "top_k": 1, "expert": "relu2"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.router = Linear(c.dim, c.n_experts, bias=False)
        self.experts = nn.ModuleList(
            part(c, "expert", FEED_FORWARDS, dim=c.dim, hidden_dim=c.hidden_dim, layer=c.layer)
            for _ in range(c.n_experts)
        )

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope) -> Float[Tensor, "b n d"]:
        """Return the weighted sum of what each token's experts compute."""
        scores = self.router(x)
        scores = scores.to(wide_dtype(scores.dtype))
        largest, chosen = scores.topk(self.config.top_k, -1)
        weights = largest.softmax(-1)
        if self.config.balance and scores.requires_grad:
            loss = load_balance(scores.softmax(-1), chosen, scope.valid).sum()
            add_auxiliary_loss("balance", self.config.balance * loss)
        if torch.compiler.is_compiling():
            return self._all(x, scope, chosen, weights)
        return self._sparse(x, chosen, weights)

    def _all(
        self, x: Float[Tensor, "b n d"], scope: Scope, chosen: Int[Tensor, "b n k"], weights: Float[Tensor, "b n k"]
    ) -> Float[Tensor, "b n d"]:
        of_each = torch.zeros(*x.shape[:2], len(self.experts), dtype=weights.dtype, device=x.device)
        of_each = of_each.scatter(-1, chosen, weights).to(x.dtype)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + of_each[..., number, None] * expert(x, scope)
        return out

    def _sparse(
        self, x: Float[Tensor, "b n d"], chosen: Int[Tensor, "b n k"], weights: Float[Tensor, "b n k"]
    ) -> Float[Tensor, "b n d"]:
        tokens, chosen, weights = x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1).to(x.dtype)
        # Processes that share weights or gradients wait for each other's experts, also for those of no token.
        needed = torch.is_grad_enabled() or dist.is_initialized()
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if not (len(rows) or needed):
                continue
            mine = tokens[rows].unsqueeze(0)
            found = expert(mine, Scope.over(mine))[0]
            out = out.index_add(0, rows, (weights[rows, place, None] * found).to(out.dtype))
        return out.view_as(x)


def load_balance(
    shares: Float[Tensor, "b n e"], chosen: Int[Tensor, "b n k"], valid: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, " b"]:
    """Return E Σ_i f_i P_i of each row: 1 where all experts are used alike, E where one is used alone.

    f_i is the part of the row's choices that fell on expert i, P_i the mean of its softmax over all experts. Source:
    arXiv 2101.03961, Section 2.2, Eq. 4–6, which takes the means over the batch; of each row by itself, the loss does
    not depend on how a batch is cut into processes and micro-batches.

    Args:
        shares: the softmax of the router's scores over all experts.
        chosen: the experts of each token.
        valid: False for padding, which counts as nothing.
    """
    (b, n, e), k = shares.shape, chosen.shape[-1]
    present = shares.new_ones(b, n, 1) if valid is None else valid.unsqueeze(-1).to(shares.dtype)
    count = present.sum(1).clamp(min=1)
    used = torch.zeros_like(shares).scatter_add(-1, chosen, present.expand(b, n, k).contiguous())
    f, p = used.sum(1) / (k * count), (shares * present).sum(1) / count
    return e * (f * p).sum(-1)
