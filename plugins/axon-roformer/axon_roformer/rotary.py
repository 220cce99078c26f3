"""Rotary position embeddings: plain, with interpolated positions, and with a base that grows with the length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from axon_core import wide_dtype
from axon_core.interfaces import RotaryEmbedding, Rotation


def frequencies(
    dim: int, base: float | Float[Tensor, "*b"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*b r2"]:
    """Return the angle per position of each feature pair, θ_i = base^(−2i/dim) for i = 0 … dim/2 − 1.

    They have device and dtype of `base`; where that is a number they are on the CPU, in `dtype`. Source: arXiv
    2104.09864, Section 3.2.2, below Eq. 15 (which counts i from 1).
    """
    bases = torch.tensor(base, dtype=dtype, device="cpu") if isinstance(base, (int, float)) else base
    exponents = torch.arange(0, dim, 2, dtype=bases.dtype, device=bases.device) / dim
    # Rounded in the order of Llama's implementations: an ulp here is multiplied by the position.
    return 1.0 / bases.unsqueeze(-1) ** exponents


class Rotary(RotaryEmbedding):
    """Rotary position embedding: feature pair i of a token at position m is turned by m · base^(−2i/dim).

    The score of a rotated query and key then depends on their distance alone. Source: arXiv 2104.09864,
    Section 3.2.2, Eq. 14–16.
    """

    class Config(RotaryEmbedding.Config):
        """Options of rotary position embeddings."""

        base: Annotated[float, Field(gt=0)] = 10000.0
        """Base of the geometric progression of the frequencies (10000: Section 3.2.2, below Eq. 15)."""

    config: Config
    frequencies: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`; its tables are float32 at least."""
        angles = positions.unsqueeze(-1) * self.frequencies.to(positions.device)
        return Rotation.of(angles, self.config.layout)

    def _frequencies(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, " r2"]:
        """Compute the frequencies; on the CPU, so that every device uses the same bits."""
        return frequencies(self.config.dim, self.config.base, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module to another device, and to float64, but not to half precision, whose angles are wrong."""
        super()._apply(fn, recurse)
        moved = self.frequencies
        self.frequencies = self._frequencies(wide_dtype(moved.dtype)).to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config)


class _Extended(Rotary):
    """A rotary embedding for sequences longer than those the model was trained with."""

    class Config(Rotary.Config):
        """Options of the methods that extend the context."""

        factor: Annotated[float, Field(ge=1)] = 1.0
        """How many times longer than `context` sequences may be; 1 extends nothing."""

    config: Config

    @property
    def context(self) -> int:
        """The longest sequence this embedding is meant for: factor · context."""
        return int(self.config.factor * self.config.context)


class LinearRotary(_Extended):
    """Position interpolation: plain rotary embedding at position m / factor.

    A model trained on `context` tokens reads factor · context tokens at positions between those it knows; it needs a
    short fine-tuning on them. Source: Chen et al., arXiv 2306.15595, Section 2.3, Eq. 4, whose L'/L is `factor`.
    """

    def _frequencies(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, " r2"]:
        # (m / factor) · θ = m · (θ / factor): divided once, here, and in the order that keeps Llama's bits.
        return super()._frequencies(dtype) / self.config.factor


class DynamicRotary(_Extended):
    """Dynamic NTK scaling: a row longer than the trained context is read with a larger base.

    For a row of length L (its largest position + 1) above the trained context L₀,

        base' = base · (factor · L / L₀ − (factor − 1))^(dim / (dim − 2)),

    and base otherwise. It needs no fine-tuning and leaves short rows as they were. Source: the rope type `dynamic` of
    Hugging Face transformers, which credits bloc97 and emozilla (2023); the idea is described in YaRN,
    arXiv 2309.00071, section "Dynamic Scaling".
    """

    @property
    def constant_until(self) -> int:
        """The trained context: beyond it, every further token changes the rotation of all tokens before it."""
        return self.config.context

    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`, whose largest in a row gives the length of that row."""
        dim, factor, trained = self.config.dim, self.config.factor, self.config.context
        length = (positions.amax(-1) + 1).to(self.frequencies.dtype)
        stretch = factor * length.clamp(min=trained) / trained - (factor - 1)
        # A single pair has frequency base^0 = 1 whatever the base, so the exponent's pole at dim 2 does not matter.
        base = self.config.base * stretch ** (dim / max(dim - 2, 1))
        longer = (length > trained).unsqueeze(-1)
        per_row = torch.where(longer, frequencies(dim, base), self.frequencies.to(positions.device))
        return Rotation.of(positions.unsqueeze(-1) * per_row.unsqueeze(1), self.config.layout)
