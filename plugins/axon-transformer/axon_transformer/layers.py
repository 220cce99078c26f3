"""The layers of encoder and decoder, the residual connections in them, and the memory between the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from axon_core.interfaces import Attention, LayerCache, Norm, Scope, TensorSplit
from axon_core.nn import Dropout, Linear
from axon_transformer.rows import SourceKernel

Sublayer = Callable[[Tensor], Tensor]


class PostNorm(nn.Module):
    """Residual connection around a sub-layer f: norm(x + dropout(f(x))) (arXiv 1706.03762, Sections 3.1 and 5.4)."""

    def __init__(self, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], f: Sublayer) -> Float[Tensor, "b n d"]:
        """Return `x` after the sub-layer."""
        return self.norm(x + self.dropout(f(x)))


class PreNorm(PostNorm):
    """Residual connection around a sub-layer f: x + dropout(f(norm(x))) (arXiv 2002.04745, Section 3)."""

    def forward(self, x: Float[Tensor, "b n d"], f: Sublayer) -> Float[Tensor, "b n d"]:
        """Return `x` after the sub-layer."""
        return x + self.dropout(f(self.norm(x)))


class FeedForward(nn.Module):
    """Each token by itself: max(0, x W₁ + b₁) W₂ + b₂ (arXiv 1706.03762, Section 3.3, Eq. 2)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the feed-forward of each token."""
        return self.down(self.up(x).relu())

    def tensor_split(self) -> TensorSplit:
        """Each process has some of the hidden features."""
        return TensorSplit(columns=["up"], rows=["down"], units=self.up.out_features, unit="hidden features")


class Memory:
    """The encoder's output for s source sentences: `features` (s m d), and which of them are `valid` (s m).

    The decoder may have several rows for each sentence, one after another, as beam search does: cross-attention takes
    all of them as queries of one memory. So a memory is neither copied nor reordered, and what the attention of layer i
    computes from it while decoding (keys and values, say) is kept once, in `caches[i]`.

    With a `kernel`, which computes the attention to it, dropped sentences stay in its memory.
    """

    def __init__(
        self,
        features: Float[Tensor, "s m d"],
        valid: Bool[Tensor, "s m"],
        layers: int,
        kernel: SourceKernel | None = None,
    ) -> None:
        self.features = features
        self.valid = valid
        self.kernel = kernel
        self.caches = [LayerCache({}, len(features), 0, features.dtype, features.device) for _ in range(layers)]
        self._scopes: dict[int, Scope] = {}

    def __len__(self) -> int:
        """How many sentences there are."""
        return len(self.valid)

    def scope(self, queries: Float[Tensor, "s q d"]) -> Scope:
        """Return the scope of cross-attention from `queries`, made once for all layers."""
        n = queries.shape[1]
        if n not in self._scopes:
            self._scopes[n] = Scope.across(queries, self.valid)
            self._scopes[n].kernel = self.kernel
        return self._scopes[n]

    def keep(self, sentences: Int[Tensor, " r"]) -> None:
        """Keep only these sentences, in this order."""
        self.valid = self.valid[sentences]
        self._scopes.clear()
        if self.kernel is not None:
            self.kernel = self.kernel.keep(sentences)
            return
        self.features = self.features[sentences]
        for cache in self.caches:
            cache.keep(sentences)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each in a residual connection (arXiv 1706.03762, Section 3.1)."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, residuals: Sequence[PostNorm]) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.residuals = nn.ModuleList(residuals)

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope) -> Float[Tensor, "b n d"]:
        """Return the tokens' features after this layer."""
        attended, fed = self.residuals
        x = attended(x, lambda x: self.attention(x, scope))
        return fed(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the memory, and feed-forward (arXiv 1706.03762, Section 3.1)."""

    def __init__(
        self, attention: Attention, cross: Attention, feed_forward: FeedForward, residuals: Sequence[PostNorm]
    ) -> None:
        super().__init__()
        self.attention = attention
        self.cross = cross
        self.feed_forward = feed_forward
        self.residuals = nn.ModuleList(residuals)

    def forward(
        self, x: Float[Tensor, "b n d"], scope: Scope, memory: Memory, cache: LayerCache | None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens' features after this layer."""
        attended, crossed, fed = self.residuals
        x = attended(x, lambda x: self.attention(x, scope, cache=cache))
        # A whole pass keeps nothing: computed again for its gradients, it must do what it did the first time.
        kept = None if cache is None else memory.caches[self.cross.config.layer]
        x = crossed(x, lambda x: self._across(x, memory, kept))
        return fed(x, self.feed_forward)

    def _across(self, x: Float[Tensor, "b n d"], memory: Memory, cache: LayerCache | None) -> Float[Tensor, "b n d"]:
        queries = x.reshape(len(memory), -1, x.shape[-1])
        return self.cross(queries, memory.scope(queries), memory=memory.features, cache=cache).view_as(x)
