"""What one forward pass knows about its tokens: their positions, and what each may see. Shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation


class Between(Protocol):
    """A function of query and key positions that broadcast to `(b h n m)`, such as a window or a distance bias.

    Equal objects (of a dataclass, one for each layer) are evaluated once for all layers.
    """

    def __call__(self, query: Int[Tensor, "b 1 n 1"], key: Int[Tensor, "b 1 1 m"], /) -> Shaped[Tensor, "b h n m"]:
        """Return one value for each query, key and, if it has them, head."""
        ...


class Kernel(Protocol):
    """Computes attention for keys and values that are not stored row by row (`Scope.kernel`)."""

    def __call__(
        self,
        q: Float[Tensor, "b n h d"],
        k: Float[Tensor, "b m k d"],
        v: Float[Tensor, "b m k e"],
        *,
        scale: float | None,
        narrow: Between | None,
        bias: Between | None,
    ) -> Float[Tensor, "b n h e"]:
        """Return what `attend` returns for these arguments."""
        ...


class Scope:
    """Positions and visibility of the tokens of one forward pass.

    A key is visible to a query if it is not padding, belongs to the same document and, in a causal scope, does not
    come later. `positions` may have a batch axis of 1 if all rows are alike. Padding has position −1, and sees itself,
    so that no softmax is empty; its result is never seen by another token.

    Attributes:
        shared: what layers leave for later ones in this pass, each under a name of its own, such as the values of the
            first; empty when the pass begins.
    """

    def __init__(
        self,
        positions: Int[Tensor, "b n"],
        keys: Int[Tensor, "b m"] | None = None,
        *,
        causal: bool,
        padded: bool = False,
        documents: Int[Tensor, "b n"] | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        """Make a scope; `padded` says whether `positions` or `keys` hold any padding.

        `keys` are the positions of everything that can be attended to. The queries are the last of them; by default,
        they are all of them. `documents` number the documents of a packed row. A cache that stores keys and values in
        another order than one row after the other gives the `kernel` that `attend` calls to read them.
        """
        self.positions = positions
        self.keys = positions if keys is None else keys
        self.causal = causal
        self.padded = padded
        self.documents = documents
        self.kernel = kernel
        self.shared: dict[str, Tensor] = {}
        self._cross = False
        self._once: list[tuple[object, Any]] = []

    @classmethod
    def over(
        cls,
        tokens: Int[Tensor, "b n"] | Float[Tensor, "b n d"],
        *,
        causal: bool = True,
        valid: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
    ) -> Scope:
        """Return the scope of a pass over whole rows, without a cache.

        `valid` is False for padding, on either side; positions count the valid tokens. With `documents`, positions
        start at 0 in each document, and no token sees another document.
        """
        b, n = tokens.shape[:2]
        if valid is None and documents is None:
            return cls(torch.arange(n, device=tokens.device).unsqueeze(0), causal=causal)
        present = torch.ones(b, n, dtype=torch.bool, device=tokens.device) if valid is None else valid
        positions = present.cumsum(1) - present.long()  # valid tokens before each one
        if documents is not None:
            starts = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0
            positions = positions - positions.masked_fill(~starts, 0).cummax(1).values
            documents = starts.cumsum(1)  # a number that recurs later is another document
        return cls(positions.masked_fill(~present, -1), causal=causal, padded=valid is not None, documents=documents)

    @classmethod
    def across(cls, x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b m"]) -> Scope:
        """Return the scope of cross-attention from `x` to a memory, of which `valid` is not padding."""
        b, n = x.shape[:2]
        some = valid | ~valid.any(1, keepdim=True)  # a row whose memory is all padding: finite, and meaningless
        keys = (some.cumsum(1) - 1).masked_fill(~some, -1)
        scope = cls(torch.arange(n, device=x.device).expand(b, n), keys, causal=False, padded=True)
        scope._cross = True
        return scope

    @property
    def valid(self) -> Bool[Tensor, "b n"] | None:
        """Which tokens are not padding; None if there is no padding."""
        return self.positions >= 0 if self.padded else None

    def rotation(self, rotary: RotaryEmbedding, dtype: torch.dtype) -> Rotation:
        """Return `rotary`'s rotation at this scope's positions, computed once for all layers.

        A document of a packed row is rotated as if it were a row of its own, whatever its length is.
        """
        return self.once((rotary, dtype), lambda: self._rotation(rotary).to(dtype))

    def rotate(
        self, rotary: RotaryEmbedding | None, *heads: Float[Tensor, "b n h d"]
    ) -> tuple[Float[Tensor, "b n h d"], ...]:
        """Rotate `heads` by their positions; without a rotary embedding they are returned unchanged."""
        if rotary is None:
            return heads
        rotation = self.rotation(rotary, heads[0].dtype)
        return tuple(rotation(x) for x in heads)

    def triangular(self, m: int) -> bool:
        """Whether each query sees, of the last `m` keys, those up to itself: the queries are the last of them."""
        return self.causal and not self.padded and self.documents is None and m >= self.positions.shape[1]

    def sees_all(self, m: int) -> bool:
        """Whether every query sees every one of the last `m` keys."""
        alone = self.positions.shape[1] == 1
        return not self.padded and self.documents is None and (alone or not self.causal)

    def mask(self, m: int, narrow: Between | None = None) -> Bool[Tensor, "b h n m"]:
        """Return which of the last `m` keys each query sees, at most those for which `narrow` is true too."""
        return self.once(("mask", m, narrow), lambda: self._mask(m, narrow))

    def bias(self, m: int, between: Between, dtype: torch.dtype) -> Float[Tensor, "b h n m"]:
        """Return `between` evaluated for the last `m` keys."""
        return self.once(("bias", m, between, dtype), lambda: between(*self._pairs(m)).to(dtype))

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """Return what `make` made for an equal `key` the first time; later layers get the same object.

        The key must hold everything the result depends on. What depends on the tokens of a layer does not belong here:
        no key can stand for data, since tensors do not compare to one truth value, and a module that is called twice in
        one pass, or a method of it, equals itself. Everything made is kept until the pass ends.
        """
        for known, made in self._once:  # not by hash, which would make a compiled length a constant
            if known == key:
                return made
        self._once.append((key, make()))
        return self._once[-1][1]

    def _rotation(self, rotary: RotaryEmbedding) -> Rotation:
        if self.documents is None or rotary.constant_until is None:
            return rotary(self.positions)
        # Angles depend on a token's position and its row's length alone: each token is given as a row of two, itself
        # and the last of its document, so that shapes do not depend on how the documents are cut.
        positions, documents = torch.broadcast_tensors(self.positions, self.documents)
        number = (documents.diff(dim=1, prepend=documents[:, :1]) != 0).cumsum(1)
        last = torch.full_like(positions, -1).scatter_reduce(1, number, positions, "amax").gather(1, number)
        table = rotary(torch.stack((positions, last), -1).flatten(0, 1))
        cos, sin = (part[:, 0].unflatten(0, positions.shape) for part in (table.cos, table.sin))
        return replace(table, cos=cos, sin=sin)

    def _pairs(self, m: int) -> tuple[Int[Tensor, "b 1 n 1"], Int[Tensor, "b 1 1 m"]]:
        return self.positions[:, None, :, None], self.keys[:, None, None, self.keys.shape[1] - m :]

    def _mask(self, m: int, narrow: Between | None) -> Bool[Tensor, "b h n m"]:
        query, key = self._pairs(m)
        mask = key <= query if self.causal else torch.ones_like(key <= query)
        if self.padded:
            mask = mask & (key >= 0)
        if self.documents is not None:
            mask = mask & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
        if narrow is not None:
            mask = mask & narrow(query, key)
        if self.padded and not self._cross:
            n = query.shape[2]
            own = torch.eye(n, m, dtype=torch.bool, device=query.device).roll(m - n, 1)
            mask = mask | (own & (query < 0))
        return mask
