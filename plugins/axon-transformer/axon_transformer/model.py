"""The Transformer: an encoder and a decoder assembled from registered parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, cast

from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, arange, nn

from axon_core import ATTENTIONS, NORMS, ROTARY_EMBEDDINGS, ConfigError, Count, UsageError, wide_dtype
from axon_core.interfaces import Attention, Cache, CacheStep, Model, Norm, RotaryEmbedding, Scope
from axon_core.nn import Dropout, PackedLinear, TiedLinear
from axon_core.registry import Spec, part, part_config
from axon_transformer.layers import DecoderLayer, EncoderLayer, FeedForward, Memory, PostNorm, PreNorm
from axon_transformer.positions import sinusoids
from axon_transformer.rows import BeamCache, SourceKernel

_RESIDUALS: dict[str, type[PostNorm]] = {"pre": PreNorm, "post": PostNorm}


class Transformer(Model):
    """The encoder-decoder `(s m), (b n) -> (b n v)`: a source and the target so far in, scores of the next token out.

    Attention and norm come from the registries, and with `rotary` a rotary embedding takes the place of the sinusoids.
    Source, target and output share one embedding, which is scaled by √d where tokens come in (Section 3.4). A source
    row ends, and a target row begins, with a marker that the caller puts there. Source: arXiv 1706.03762, Section 3.

    Raises:
        ConfigError: a size does not fit, a part's option breaks a rule, the attention cannot attend to a memory, or it
            is causal only.
        UnknownKey: no installed plugin offers a part of that name.
    """

    class Config(Model.Config):
        """Sizes of a Transformer, by default those of the base model (Table 3), and the names of its parts."""

        vocab_size: PositiveInt
        """Number of tokens v, of source and target together."""
        context: PositiveInt = 256
        """The longest source or target, its end marker included."""
        dim: PositiveInt = 512
        """Features d of a token."""
        n_heads: PositiveInt = 8
        """Query heads of each attention."""
        encoder_layers: Count = 6
        """Layers of the encoder."""
        decoder_layers: Count = 6
        """Layers of the decoder."""
        hidden_dim: PositiveInt = Field(default_factory=lambda given: 4 * given["dim"])
        """Hidden features of the feed-forward; by default 4d (Section 3.3: 2048 for 512)."""
        dropout: float = Field(default=0.1, ge=0, le=0.9)
        """The share of sub-layers' outputs, and of embedded tokens, that training drops, in 256ths (Section 5.4)."""
        norm_position: Literal["pre", "post"] = "pre"
        """Where a sub-layer is normalised: `post`, after it was added (Section 3.1), or `pre`, before it is computed,
        which needs no warm-up (arXiv 2002.04745)."""
        attention: Spec = Spec(type="MHA")
        """The attention of every layer over the sequence itself."""
        cross_attention: Spec = Field(default_factory=lambda given: given["attention"])
        """The decoder's attention to the memory; by default as `attention`."""
        rotary: Spec | None = None
        """The rotary embedding of the attentions over the sequence itself; left out, sinusoids are added instead."""
        norm: Spec = Spec(type="layernorm")
        """The norm of every sub-layer and, with `pre`, of what leaves encoder and decoder."""

    config: Config
    examples = (
        {"encoder_layers": 1, "decoder_layers": 2},
        {"encoder_layers": 2, "decoder_layers": 1, "norm_position": "post"},
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.rotary = self._rotary()
        if self.rotary is None:
            sinusoids(arange(0), c.dim)  # raises if they cannot be computed
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        nn.init.normal_(self.embedding.weight, std=c.dim**-0.5)
        self.dropout = Dropout(c.dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(self._attention(layer, c.encoder_layers), FeedForward(c.dim, c.hidden_dim), self._residuals(2))
            for layer in range(c.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(
                self._attention(layer, c.decoder_layers),
                self._cross(layer),
                FeedForward(c.dim, c.hidden_dim),
                self._residuals(3),
            )
            for layer in range(c.decoder_layers)
        )
        self.encoder_norm, self.decoder_norm = (
            part(c, "norm", NORMS, dim=c.dim) if c.norm_position == "pre" else nn.Identity() for _ in range(2)
        )
        self.head = TiedLinear(self.embedding)

    def forward(
        self,
        source: Int[Tensor, "b m"],
        target: Int[Tensor, "b n"],
        *,
        valid: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Return the scores of the token after each of `target`; `valid` is False for the source's padding."""
        return self.logits(self.decode(target, self.encode(source, valid=valid)))

    def encode(self, source: Int[Tensor, "s m"], *, valid: Bool[Tensor, "s m"] | None = None) -> Memory:
        """Return the memory of the source sentences; `valid` is False for padding, whatever id stands there."""
        if valid is None:
            valid = source.new_ones(source.shape).bool()
            scope = Scope.over(source, causal=False)
        else:
            source = source.masked_fill(~valid, 0)  # a padding id such as −1 has no embedding
            scope = Scope.over(source, causal=False, valid=valid)
        scope.kernel = kernel = self._kernel(valid)
        x = self._embed(source, scope)
        for layer in cast("Iterable[EncoderLayer]", self.encoder):
            x = layer(x, scope)
        return Memory(self.encoder_norm(x), valid, len(self.decoder), kernel)

    def decode(
        self, target: Int[Tensor, "b n"], memory: Memory, *, cache: Cache | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the features of each target token, ready for `logits`.

        There may be several rows for each sentence of the memory, one after another. With a `cache` the tokens follow
        those already in it, and none may be padding. Without one, padding stands after the last token, where no token
        sees it, and may be any id.

        Raises:
            UsageError: a token is padding, a negative id, and there is a cache, in which it would count as a token.
        """
        n, padded = target.shape[1], cache is not None and bool((target < 0).any())
        target = target.clamp(min=0)
        if cache is None:
            step = CacheStep(target, Scope.over(target), [None] * len(self.decoder))
        else:
            if padded:
                raise UsageError(
                    "with a cache every target token must be one of the vocabulary, got padding (a negative id), which "
                    "later tokens would see; decode rows of different lengths without a cache, or one by one"
                )
            step = cache.extend(target)
        x = self._embed(step.tokens, step.scope)
        for layer, layer_cache in zip(cast("Iterable[DecoderLayer]", self.decoder), step.layers, strict=True):
            x = layer(x, step.scope, memory, layer_cache)
        return self.decoder_norm(x[:, -n:])

    def logits(self, features: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Return the scores of the next token."""
        return self.head(features)

    def new_beam_cache(self, rows: int, capacity: int) -> Cache:
        """Return an empty cache as `new_cache` does, for rows that are reordered and dropped all the time.

        A packed model (`pack_products`) gets a `BeamCache`, if the states of its attentions allow it.
        """
        cache = self.new_cache(1, 1)
        states = [state for layer in cache.layers for state in layer.states.values()]
        if cache.horizon is None and isinstance(self.head, PackedLinear):
            if all(state.per_token and state.window is None for state in states):
                weight = self.embedding.weight
                layers = [layer.states for layer in cache.layers]
                return BeamCache(layers, rows, capacity, weight.dtype, weight.device)
        return self.new_cache(rows, capacity)

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """Return an empty cache of the decoder for `rows` rows of up to `capacity` tokens."""
        weight = self.embedding.weight
        return Cache(
            [layer.attention.state() for layer in cast("Iterable[DecoderLayer]", self.decoder)],
            rows,
            capacity,
            dtype=weight.dtype,
            device=weight.device,
            horizon=None if self.rotary is None else self.rotary.constant_until,
        )

    def hidden_matrices(self) -> list[Tensor]:
        """The weights of all linear layers; the embedding, which is also the output head, is not one of them."""
        layers = (*self.encoder.modules(), *self.decoder.modules())
        return [module.weight for module in layers if isinstance(module, nn.Linear)]

    def _kernel(self, valid: Bool[Tensor, "s m"]) -> SourceKernel | None:
        """What computes the attention to sources, of a packed model (`pack_products`) whose padding is at the end."""
        if not isinstance(self.head, PackedLinear):
            return None
        lengths = valid.sum(1)
        at_end = bool((valid == (arange(valid.shape[1], device=valid.device) < lengths.unsqueeze(1))).all())
        return SourceKernel(lengths) if at_end else None

    def _embed(self, tokens: Int[Tensor, "b n"], scope: Scope) -> Float[Tensor, "b n d"]:
        x = self.embedding(tokens) * math.sqrt(self.config.dim)
        if self.rotary is None:
            x = x + sinusoids(scope.positions, self.config.dim, dtype=wide_dtype(x.dtype)).to(x.dtype)
        return self.dropout(x)

    def _rotary(self) -> RotaryEmbedding | None:
        c = self.config
        if c.rotary is None:
            return None
        sizes = part_config(c, "attention", ATTENTIONS, Attention.Config, **self._sizes(c.encoder_layers))
        if not sizes.rotary_dim:
            raise ConfigError([(("rotary",), f"the attention {c.attention.type!r} takes no rotary embedding")])
        return part(c, "rotary", ROTARY_EMBEDDINGS, dim=sizes.rotary_dim, context=c.context)

    def _sizes(self, n_layers: int) -> dict[str, int]:
        c = self.config
        return {"dim": c.dim, "n_heads": c.n_heads, "n_layers": n_layers, "context": c.context}

    def _attention(self, layer: int, n_layers: int) -> Attention:
        c = self.config
        attention = part(c, "attention", ATTENTIONS, **self._sizes(n_layers), layer=layer, rotary=self.rotary)
        if not attention.bidirectional:  # the encoder sees the whole sentence
            message = f"{c.attention.type!r} is causal only; choose another, such as 'MHA'"
            raise ConfigError([(("attention",), message)])
        return attention

    def _cross(self, layer: int) -> Attention:
        c = self.config
        attention = part(c, "cross_attention", ATTENTIONS, **self._sizes(c.decoder_layers), layer=layer)
        if not attention.cross:
            message = f"{c.cross_attention.type!r} cannot attend to a memory; choose another, such as 'MHA'"
            raise ConfigError([(("cross_attention",), message)])
        return attention

    def _residuals(self, count: int) -> list[PostNorm]:
        c = self.config
        return [_RESIDUALS[c.norm_position](_norm(c), c.dropout) for _ in range(count)]


def _norm(config: Transformer.Config) -> Norm:
    return part(config, "norm", NORMS, dim=config.dim)
