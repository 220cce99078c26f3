"""The interface of rotary position embeddings, and the rotation they produce."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from axon_core import config
from axon_core.precision import widen

Layout = Literal["half", "interleaved"]


@dataclass(frozen=True)
class Rotation:
    """The rotation of one forward pass: tables for its positions, applied to queries and keys alike.

    Feature pairs (x, y) become (x cos θ − y sin θ, y cos θ + x sin θ) (arXiv 2104.09864, Section 3.2.2). Both tables
    hold one entry per feature, the sine with the sign its feature needs, so that a rotation is
    `x · cos + swap(x) · sin`. A rotary embedding with a `scale` has it in both tables.
    """

    cos: Float[Tensor, "b n r"]
    """cos θ of every feature; a rotary embedding computes it in float32 at least."""
    sin: Float[Tensor, "b n r"]
    """−sin θ for the first feature of a pair, sin θ for the second."""
    layout: Layout
    """`half` pairs features (i, i + r/2); `interleaved` pairs (2i, 2i + 1)."""

    @classmethod
    def of(cls, angles: Float[Tensor, "b n r2"], layout: Layout, scale: float = 1.0) -> Self:
        """Return the rotation by `angles`, one per feature pair, times `scale`; the tables are float32 at least."""
        angles = widen(angles)
        cos, sin = angles.cos(), angles.sin()
        if scale != 1:
            cos, sin = cos * scale, sin * scale
        if layout == "half":
            return cls(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), layout)
        return cls(torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2), layout)

    def to(self, dtype: torch.dtype) -> Rotation:
        """Return the same rotation with tables of another dtype."""
        return replace(self, cos=self.cos.to(dtype), sin=self.sin.to(dtype))

    def __call__(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "b n h d"]:
        """Rotate the first r features of every head of `x`; features beyond r pass unchanged."""
        r = self.cos.shape[-1]
        head, tail = (x, None) if x.shape[-1] == r else x.split((r, x.shape[-1] - r), -1)
        if self.layout == "half":
            swapped = head.roll(r // 2, -1)
        else:
            swapped = head.unflatten(-1, (r // 2, 2)).flip(-1).flatten(-2)
        cos, sin = self.cos.unsqueeze(2).to(x.dtype), self.sin.unsqueeze(2).to(x.dtype)
        head = torch.addcmul(head * cos, swapped, sin)
        return head if tail is None else torch.cat((head, tail), -1)


class RotaryEmbedding(nn.Module, ABC):
    """Positions to the rotation of queries and keys: `(b n) -> Rotation`.

    The angles are computed in float32 at least, whatever the module's dtype. A token's angles depend on its position
    and on its row's length, which is the row's largest position + 1; never on how many columns the row has, on its
    neighbours in the batch or on what was computed before. The length matters only past `constant_until`.
    """

    class Config(config.Config):
        """What a model passes down to every rotary embedding."""

        dim: PositiveInt
        """How many features of a head are rotated: an even number r ≤ head_dim."""
        context: PositiveInt = 2048
        """Sequence length the model is trained with."""
        layout: Layout = "half"
        """Which features form a pair: `half` is (i, i + r/2), `interleaved` is (2i, 2i + 1)."""

        @model_validator(mode="after")
        def _even(self) -> Self:
            if self.dim % 2:
                raise ValueError(f"a rotary dimension must be even, got {self.dim}; make the attention's head_dim even")
            return self

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options the conformance kit builds it with, on top of what a model passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`."""

    @property
    def context(self) -> int:
        """The longest sequence this embedding is meant for; a method that extends the context returns more."""
        return self.config.context

    @property
    def scale(self) -> float:
        """What it multiplies the rotated features by: 1 for a rotation alone; a temperature of the attention else."""
        return 1.0

    @property
    def constant_until(self) -> int | None:
        """The sequence length up to which a position's rotation never changes; None if it never does.

        Beyond it, everything in a cache was computed with other rotations and must be computed again.
        """
        return None
