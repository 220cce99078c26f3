"""X-Llama: the Llama 2 architecture (arXiv 2307.09288, Section 2.2) assembled from registered parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self, cast

from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from axon_core import ATTENTIONS, NORMS, ROTARY_EMBEDDINGS, ContractError, Count, UsageError, at
from axon_core.interfaces import (
    Attention,
    Cache,
    CacheStep,
    CausalLM,
    LayerCache,
    Norm,
    RotaryEmbedding,
    Scope,
    StateSpec,
)
from axon_core.nn import Linear
from axon_core.registry import Spec, part
from axon_xllama.embedding import EMBEDDINGS
from axon_xllama.feed_forward import FEED_FORWARDS, FeedForwardLayer
from axon_xllama.layers import NO_ROTARY, LayerPattern, layer_part, unreached
from axon_xllama.mixing import TOKEN_MIXERS, TokenMixer
from axon_xllama.residual import RESIDUAL_STREAMS


class Block(nn.Module):
    """One layer: attention and feed-forward, each on normalised input and added to its input (pre-norm)."""

    attention: Attention

    def __init__(
        self,
        attention: Attention,
        attention_norm: Norm,
        feed_forward: FeedForwardLayer,
        ff_norm: Norm,
        mixers: tuple[TokenMixer, TokenMixer],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = ff_norm
        self.attention_mixer, self.feed_forward_mixer = mixers

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        cache: LayerCache | None,
        mixed: Sequence[LayerCache | None] = (None, None),
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens' features after this layer; `mixed` are the caches of its two token mixers."""
        y = self.attention_mixer(self.attention_norm(x), scope, mixed[0])
        h = x + self.attention(y, scope, cache=cache)
        z = self.feed_forward_mixer(self.feed_forward_norm(h), scope, mixed[1])
        return h + self.feed_forward(z, scope)


class XLlama(CausalLM):
    """Llama 2 with every part injected by name: attention, rotary embedding, feed-forward and norm are registered ones.

    `(b n) -> (b n v)`: tokens in, scores of the next token out. Source: arXiv 2307.09288, Section 2.2.

    Raises:
        ConfigError: a size does not fit, or a part's option breaks a rule.
        ContractError: the `Config` of an attention is not one of `Attention`.
        UnknownKey: no installed plugin offers a part of that name.
    """

    class Config(CausalLM.Config):
        """Sizes of an X-Llama, and the names of its parts."""

        dim: PositiveInt
        """Features d of a token."""
        n_layers: Count
        """Number of layers."""
        n_heads: PositiveInt
        """Query heads of each attention."""
        hidden_dim: PositiveInt = Field(default_factory=lambda given: _hidden_dim(given["dim"]))
        """Hidden features of the feed-forward; by default ⅔ · 4d (arXiv 2302.13971, Section 2.2), rounded up to 16."""
        embedding: Spec = Spec(type="token")
        """The embedding of tokens, in `EMBEDDINGS`: a table with a row for each."""
        residual: Spec = Spec(type="plain")
        """What each layer reads of those before it, in `RESIDUAL_STREAMS`: the last one's output."""
        token_mixer: Spec = Spec(type="none")
        """What the parts of every layer read of the tokens just before, in `TOKEN_MIXERS`: nothing."""
        attention: Spec = Spec(type="GQA")
        """The attention of every layer (arXiv 2307.09288, Section 2.2: grouped-query attention)."""
        rotary: Spec = Spec(type="rotary")
        """The rotary embedding of every layer (arXiv 2302.13971, Section 2.2); `none` for positions not encoded."""
        feed_forward: Spec = Spec(type="swiglu")
        """The feed-forward of every layer (arXiv 2302.13971, Section 2.2)."""
        layers: tuple[LayerPattern, ...] = ()
        """Which layers have other parts: the first pattern that has a layer says which."""
        norm: Spec = Spec(type="rmsnorm")
        """The norm before each part of a layer and before the head (arXiv 2302.13971, Section 2.2)."""
        tie_embeddings: bool = False
        """Whether the head's weights are the embedding's; Llama 2 does not tie them."""

        @model_validator(mode="after")
        def _reached(self) -> Self:
            for number in unreached(self.layers, self.n_layers):
                raise ValueError(
                    f"layers.{number} must decide about a layer, but with `every` {self.layers[number].every} it has "
                    f"none of {self.n_layers} that an earlier pattern leaves; make it smaller, or move the pattern up"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self._shared: list[tuple[Spec, RotaryEmbedding]] = []
        self.embedding = part(c, "embedding", EMBEDDINGS, vocab_size=c.vocab_size, dim=c.dim)
        self.blocks = nn.ModuleList(
            Block(
                self._attention(layer),
                part(c, "norm", NORMS, dim=c.dim),
                self._feed_forward(layer),
                part(c, "norm", NORMS, dim=c.dim),
                (self._token_mixer(layer), self._token_mixer(layer)),
            )
            for layer in range(c.n_layers)
        )
        self.residual = part(c, "residual", RESIDUAL_STREAMS, dim=c.dim, n_layers=c.n_layers)
        self.norm = part(c, "norm", NORMS, dim=c.dim)
        self.head = Linear(c.dim, c.vocab_size, bias=False)
        self._keeping = [bool(state) for state in self._other_states()]
        if c.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _attention(self, layer: int) -> Attention:
        c = self.config
        spec, place = layer_part(c, c.layers, layer, "attention")
        given = {"dim": c.dim, "n_heads": c.n_heads, "layer": layer, "n_layers": c.n_layers, "context": c.context}
        with at(*place):
            sizes = ATTENTIONS.config(spec, **given)
            if not isinstance(sizes, Attention.Config):
                raise ContractError(
                    f"the Config of {spec.type!r} must be a subclass of {Attention.Config.__qualname__}"
                )
        rotary = self._rotary(layer, sizes.rotary_dim) if sizes.rotary_dim else None
        with at(*place):
            return ATTENTIONS.build(spec, **given, rotary=rotary)

    def _rotary(self, layer: int, dim: int) -> RotaryEmbedding | None:
        """Return the rotary embedding of a layer: one for all layers that have the same."""
        c = self.config
        spec, place = layer_part(c, c.layers, layer, "rotary")
        if spec.type == NO_ROTARY:
            return None
        for known, rotary in self._shared:
            if known == spec and rotary.config.dim == dim:
                return rotary
        with at(*place):
            rotary = ROTARY_EMBEDDINGS.build(spec, dim=dim, context=c.context)
        self._shared.append((spec, rotary))
        return rotary

    def _feed_forward(self, layer: int) -> FeedForwardLayer:
        c = self.config
        spec, place = layer_part(c, c.layers, layer, "feed_forward")
        with at(*place):
            return FEED_FORWARDS.build(spec, dim=c.dim, hidden_dim=c.hidden_dim, layer=layer)

    def _token_mixer(self, layer: int) -> TokenMixer:
        c = self.config
        return part(c, "token_mixer", TOKEN_MIXERS, dim=c.dim, layer=layer)

    @property
    def rotaries(self) -> list[RotaryEmbedding]:
        """The rotary embeddings of its layers, each once."""
        return [rotary for _, rotary in self._shared]

    @property
    def context(self) -> int:
        """The longest sequence the model is meant for; a rotary embedding may extend the training context."""
        return min((rotary.context for rotary in self.rotaries), default=self.config.context)

    def features(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        valid: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return each token's normalised features after the last layer; arguments as for `CausalLM.features`.

        Raises:
            UsageError: with a cache, documents are given, or padding after a row's first token.
        """
        n = tokens.shape[1]
        if cache is not None and documents is not None:
            raise UsageError("a cache holds one document per row; leave out either the cache or the documents")
        if valid is not None:
            tokens = tokens.masked_fill(~valid, 0)  # a padding id such as −1 has no embedding
        if cache is None:
            step = CacheStep(tokens, Scope.over(tokens, valid=valid, documents=documents), [None] * len(self.blocks))
        else:
            step = cache.extend(tokens, valid)
        own, *mixed = self._others(step.layers)
        past: list[Tensor] = []
        x = self.residual(self.embedding(step.tokens, step.scope, own), past)
        for i, block in enumerate(self.blocks):
            x = self.residual(block(x, step.scope, step.layers[i], mixed[2 * i : 2 * i + 2]), past)
        return self.norm(x[:, -n:])

    def logits(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """Return the scores of the next token."""
        return self.head(features)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens, in the model's dtype and device."""
        weight = self.embedding.weight
        return Cache(
            self._states(),
            batch,
            capacity,
            dtype=weight.dtype,
            device=weight.device,
            horizon=min((until for rotary in self.rotaries if (until := rotary.constant_until)), default=None),
        )

    def _states(self) -> list[Mapping[str, StateSpec]]:
        """The state of each attention while decoding, then those of the embedding and the mixers that have any."""
        attentions = [block.attention.state() for block in cast("Iterable[Block]", self.blocks)]
        return [*attentions, *filter(None, self._other_states())]

    def _other_states(self) -> list[Mapping[str, StateSpec]]:
        mixers = (
            mixer.state()
            for block in cast("Iterable[Block]", self.blocks)
            for mixer in (block.attention_mixer, block.feed_forward_mixer)
        )
        return [self.embedding.state(), *mixers]

    def _others(self, layers: Sequence[LayerCache | None]) -> list[LayerCache | None]:
        """Return the caches of the embedding and of each block's mixers; None for those without a state."""
        held = iter(layers[len(self.blocks) :])
        return [next(held, None) if keeps else None for keeps in self._keeping]

    def hidden_matrices(self) -> list[Tensor]:
        """The weights of all linear layers inside the blocks, and of the embedding's."""
        inside = (*self.blocks.modules(), *self.embedding.modules())
        return [module.weight for module in inside if isinstance(module, nn.Linear)]


def _hidden_dim(dim: int) -> int:
    return -(-8 * dim // 3 // 16) * 16
