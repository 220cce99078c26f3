"""A shift of some features to later tokens: no parameters, no products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, Self, cast

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from axon_core.interfaces import LayerCache, Scope, StateSpec
from axon_xllama.mixing import TokenMixer

__all__ = ["TokenShift", "shift_features"]


def shift_features(
    x: Float[Tensor, "b n d"], before: Float[Tensor, "b r w"] | None, widths: Sequence[int]
) -> Float[Tensor, "b n d"]:
    """Return x with its first `widths[0]` features taken from one token before, the next from two before, and so on.

    `before` holds the first w = Σ widths features of the r tokens before the first one of x, r at least the number of
    widths; None for zeros. The features after w stay. Source: arXiv 1811.08383, Abstract: part of the channels is
    shifted along the temporal dimension; here, as in its online setting, from earlier to later times alone.
    """
    return cast(Tensor, _Shift.apply(x, None if before is None else before.to(x.dtype), tuple(widths)))


class _Shift(torch.autograd.Function):
    """The shift, whose parts are written into one output and one gradient: half the time of a concatenation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, widths: tuple[int, ...]) -> Tensor:
        reach = 0 if before is None else before.shape[1]
        ctx.widths, ctx.reach = widths, reach
        out, n = x.clone(), x.shape[1]
        for places, features in _groups(widths):
            late = min(places, n)
            out[:, late:, features] = x[:, : n - late, features]
            if before is None:
                out[:, :late, features] = 0
            else:
                out[:, :late, features] = before[:, reach - places : reach - places + late, features]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        of_x, (b, n, _) = gradient.clone(), gradient.shape
        of_before = gradient.new_zeros(b, ctx.reach, sum(ctx.widths)) if ctx.needs_input_grad[1] else None
        for places, features in _groups(ctx.widths):
            late = min(places, n)
            of_x[:, : n - late, features] = gradient[:, late:, features]
            of_x[:, n - late :, features] = 0
            if of_before is not None:
                of_before[:, ctx.reach - places : ctx.reach - places + late, features] = gradient[:, :late, features]
        return of_x, of_before, None


def _groups(widths: Sequence[int]) -> list[tuple[int, slice]]:
    """Return, for each shift, by how many tokens it goes and which features."""
    ends = list(accumulate(widths, initial=0))
    return [(places, slice(*pair)) for places, pair in enumerate(pairwise(ends), 1)]


class TokenShift(TokenMixer):
    """Some features of each token are those of the tokens before it, `(b n d) -> (b n d)`.

    Of d features, the first share s_1 is that of one token before, the next share s_2 that of two before, and so on;
    the rest is the token's own. Where there is no token before, the features are 0. With a cache, it keeps the features
    of the last tokens. Source: arXiv 1811.08383, Abstract, in the online setting; as token shift, of one half by one
    token, it is part of early RWKV language models, in a public repository.
    """

    class Config(TokenMixer.Config):
        """How many features are shifted."""

        shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.5,), min_length=1)
        """Shares s_1, s_2, … of the features that come from one token before, two before, …; together at most 1."""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if sum(self.shares) > 1 + 1e-9:
                raise ValueError(f"shares must add up to at most 1, got {sum(self.shares):g}; make one smaller")
            if not all(self.widths):
                raise ValueError(f"each share of dim {self.dim} must be at least one feature, got {self.shares}")
            return self

        @property
        def widths(self) -> list[int]:
            """How many features each share is, rounded down."""
            return [int(share * self.dim + 1e-9) for share in self.shares]

    config: Config
    examples = ({}, {"shares": (0.25, 0.25)}, {"shares": (1.0,)})

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope, cache: LayerCache | None) -> Float[Tensor, "b n d"]:
        """Return the features, some of them shifted."""
        widths = self.config.widths
        w, r = sum(widths), len(widths)
        before = None if cache is None else cache["last"]
        y = shift_features(x, before, widths)
        if cache is not None and before is not None:
            cache["last"] = torch.cat((before, x[..., :w].to(before.dtype)), 1)[:, -r:]
        if not scope.padded and scope.documents is None:
            return y
        absent = [  # (b n width) for each share: there is no token so far before
            (scope.positions < places).unsqueeze(-1).expand(-1, -1, width) for places, width in enumerate(widths, 1)
        ]
        own = torch.zeros_like(absent[0][..., :1]).expand(-1, -1, x.shape[-1] - w)
        return y.masked_fill(torch.cat((*absent, own), -1), 0)

    def state(self) -> Mapping[str, StateSpec]:
        """The shifted features of the last tokens, as many as the furthest shift."""
        widths = self.config.widths
        return {"last": StateSpec((len(widths), sum(widths)), per_token=False)}
