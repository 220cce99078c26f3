"""A small decoder of the core's parts alone, on which the paper's claims are checked."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from axon_core import Cache, CausalLM, LayerCache, Scope, StateSpec, UsageError
from axon_core.interfaces import CacheStep
from axon_core.nn import QKV, Linear, attend

_HEAD = 16  # features of a head


class _Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv = QKV(dim, dim // _HEAD, dim // _HEAD, _HEAD)
        self.out, self.up, self.down = Linear(dim, dim), Linear(dim, 4 * dim), Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope, cache: LayerCache | None) -> Float[Tensor, "b n d"]:
        q, k, v = self.qkv(self.norms[0](x))
        k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        x = x + self.out(attend(q, k, v, scope).flatten(-2))
        return x + self.down(gelu(self.up(self.norms[1](x))))


class SmallDecoder(CausalLM):
    """A decoder with learned positions `(b n) -> (b n v)` (arXiv 1706.03762, Section 3), pre-norm."""

    class Config(CausalLM.Config):
        """Its sizes."""

        dim: int = 64
        """Features d of a token."""
        n_layers: int = 2
        """Number of layers."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.places = nn.Embedding(config.context, config.dim)
        self.layers = nn.ModuleList(_Layer(config.dim) for _ in range(config.n_layers))
        self.head = Linear(config.dim, config.vocab_size, bias=False)

    def features(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        valid: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return each token's features; arguments as for `CausalLM.features`.

        Raises:
            UsageError: with a cache, documents are given, or padding after a row's first token.
        """
        if cache is not None and documents is not None:
            raise UsageError("a cache holds one document per row; leave out either the cache or the documents")
        if cache is None:
            step = CacheStep(tokens, Scope.over(tokens, valid=valid, documents=documents), [None] * len(self.layers))
        else:
            step = cache.extend(tokens, valid)
        x = self.embedding(step.tokens) + self.places(step.scope.positions.clamp(min=0))
        for layer, states in zip(self.layers, step.layers, strict=True):
            x = layer(x, step.scope, states)
        return x[:, -tokens.shape[1] :]

    def logits(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """Return the scores of the next token."""
        return self.head(features)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens, in the model's dtype and device."""
        state = StateSpec((self.config.dim // _HEAD, _HEAD))
        weight = self.embedding.weight
        states = [{"k": state, "v": state} for _ in self.layers]
        return Cache(states, batch, capacity, dtype=weight.dtype, device=weight.device)
