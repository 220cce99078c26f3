"""An embedding of the n-grams that end at each token, added to that of the token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from axon_core import UsageError
from axon_core.interfaces import LayerCache, Scope, StateSpec
from axon_core.nn import Linear
from axon_xllama.embedding import TokenEmbedding

__all__ = ["NGramEmbedding", "n_gram_ids", "preceding"]


class NGramEmbedding(TokenEmbedding):
    """The features of each token and of the n-grams that end at it, `(b n) -> (b n d)`.

        E(t)_i = E_1[t_i] + Σ_{k=2}^{n} W_k E_k[id(t_{i-k+1} … t_i) mod r]

    E_k is a table of r rows and W_k a map from its `width` to d features, left out where both are equal. The tables
    of n-grams start at zero, so that the model starts as one without them. With a cache it keeps the ids of a row's
    tokens. Source: arXiv 2501.16975, Abstract (multi-gram tokens of the input vocabulary), there called over-encoding.
    """

    class Config(TokenEmbedding.Config):
        """Sizes of the tables of n-grams."""

        n: int = Field(default=2, ge=2)
        """Tokens of the longest n-gram; there is a table for each length from 2 to n."""
        rows: PositiveInt = Field(default_factory=lambda given: given["vocab_size"] * (given["vocab_size"] + 1))
        """Rows r of each table; n-grams whose ids are equal modulo r share a row. By default a row for every pair."""
        width: PositiveInt = Field(default_factory=lambda given: given["dim"])
        """Features of a row; if they are not those of a token, a matrix maps them."""

        @model_validator(mode="after")
        def _countable(self) -> Self:
            if (self.vocab_size + 1) ** self.n >= 2**63:
                raise ValueError(
                    f"(vocab_size + 1)^n must be below 2^63, so that n-grams have numbers, got {self.vocab_size + 1}^"
                    f"{self.n}; make n smaller"
                )
            return self

    config: Config
    examples = ({}, {"n": 3, "rows": 50, "width": 6}, {"rows": 7})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tables = nn.ModuleList(nn.Embedding(config.rows, config.width) for _ in range(config.n - 1))
        mapped = config.width != config.dim
        self.maps = nn.ModuleList(
            Linear(config.width, config.dim, bias=False) if mapped else nn.Identity() for _ in self.tables
        )
        for table in self.tables:
            nn.init.zeros_(table.get_parameter("weight"))

    def forward(
        self, input: Int[Tensor, "b n"], scope: Scope | None = None, cache: LayerCache | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens' features; without a scope, `input` holds whole rows.

        Raises:
            UsageError: the cache has another order than one row after the other.
        """
        scope = Scope.over(input) if scope is None else scope
        x = super().forward(input)
        earlier = preceding(input, scope, self.config.n - 1, none=self.config.vocab_size, cache=cache)
        ids = n_gram_ids([input, *earlier], self.config.vocab_size)
        for table, mapped, number in zip(self.tables, self.maps, ids, strict=True):
            x = x + mapped(table(number % self.config.rows))
        return x

    def state(self) -> Mapping[str, StateSpec]:
        """The ids of the tokens so far."""
        return {"tokens": StateSpec((), dtype=torch.long)}


def n_gram_ids(tokens: Sequence[Int[Tensor, "b n"]], vocab_size: int) -> list[Int[Tensor, "b n"]]:
    """Return the number of the 2-gram, 3-gram, … that ends at each place: t_i + v Σ_{j≥1} t_{i-j} (v + 1)^{j-1}.

    Different n-grams of one length k have different numbers, below v (v + 1)^{k-1}. `tokens` are the tokens at the
    places, then those one place before, two places before and so on, with id v for none.
    """
    number, numbers = tokens[0], list[Tensor]()
    for j, earlier in enumerate(tokens[1:], 1):
        number = number + earlier * (vocab_size * (vocab_size + 1) ** (j - 1))
        numbers.append(number)
    return numbers


def preceding(
    tokens: Int[Tensor, "b n"], scope: Scope, count: int, *, none: int, cache: LayerCache | None = None
) -> list[Int[Tensor, "b n"]]:
    """Return the tokens one place before each, two places before, … `count` places; `none` before a row's first.

    A document of a packed row and a row with padding have their own first token, as the positions in `scope` say. With
    a `cache`, whose state `tokens` the new ones are added to, earlier tokens come from it.

    Raises:
        UsageError: the cache has another order than one row after the other.
    """
    if cache is None:
        shifted = (pad(tokens, (k, 0))[:, : tokens.shape[1]] for k in range(1, count + 1))
        return [earlier.masked_fill(scope.positions < k, none) for k, earlier in enumerate(shifted, 1)]
    (every,) = cache.append(tokens=tokens)
    if scope.kernel is not None or scope.keys.shape[1] != every.shape[1]:
        raise UsageError("an embedding of n-grams needs a cache that stores one row after the other")
    # Index p + 1 holds the token at position p; padding and slots not yet filled have position −1.
    by_position = every.new_full((len(every), every.shape[1] + 1), none)
    by_position.scatter_(1, (scope.keys + 1).expand_as(every), every)
    by_position[:, 0] = none
    places = scope.positions.expand(len(every), -1)
    return [by_position.gather(1, (places + 1 - k).clamp(min=0)) for k in range(1, count + 1)]
