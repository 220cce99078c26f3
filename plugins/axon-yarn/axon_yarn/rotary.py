"""Rotary embeddings that interpolate some feature pairs and leave others: YaRN's, and Llama 3.1's."""

from __future__ import annotations

from math import ceil, floor, log, tau
from typing import Annotated, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from axon_core.interfaces import Rotation
from axon_roformer import Rotary

_FLAT = 0.001  # the least width of the ramp, as in all implementations


def by_rotations(
    theta: Float[Tensor, " r2"],
    base: float,
    factor: float,
    context: int,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
) -> Float[Tensor, " r2"]:
    """Return YaRN's frequencies: pairs that turn often within the context stay, slow ones are interpolated.

    With c(t) the index at which a pair turns t times within the context, and w rising from 0 at c(fast) to 1 at
    c(slow), `θ' = w θ / factor + (1 − w) θ`. Source: arXiv 2309.00071, Section 3.2, Eq. 17–20, with the ramp by index
    that the authors' code has, and after it transformers and llama.cpp; the paper's is linear in the number of turns.

    Args:
        theta: the trained frequencies, radians per position.
        base: of which they are powers.
        factor: how many times longer sequences become.
        context: the sequence length that was trained with.
        fast: turns (β) from which on a pair stays as it is.
        slow: turns (α) up to which a pair is interpolated.
        truncate: whether the ends of the ramp are rounded outwards, to whole indices.
    """
    dim = 2 * len(theta)
    low, high = (dim * log(context / (turns * tau)) / (2 * log(base)) for turns in (fast, slow))
    if truncate:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    index = torch.arange(len(theta), dtype=theta.dtype, device=theta.device)
    w = ((index - low) / max(high - low, _FLAT)).clamp(0, 1)
    return w * theta / factor + (1 - w) * theta


def by_wavelength(
    theta: Float[Tensor, " r2"], factor: float, context: int, *, low: float = 1.0, high: float = 4.0
) -> Float[Tensor, " r2"]:
    """Return Llama 3.1's frequencies: short wavelengths stay, long ones are interpolated.

    With t = context · θ / 2π, the turns of a pair within the context, and u = (t − low) / (high − low) between 0 and 1,
    `θ' = (1 − u) θ / factor + u θ`. Source: rope type `llama3` of Hugging Face transformers, after Meta's code;
    interpolation in proportion to the turns is that of arXiv 2309.00071, Section 3.2, Eq. 18–20.

    Args:
        theta: the trained frequencies, radians per position.
        factor: how many times longer sequences become.
        context: the sequence length that was trained with.
        low: turns up to which a pair is interpolated.
        high: turns from which on a pair stays as it is.
    """
    u = ((context * theta / tau - low) / (high - low)).clamp(0, 1)
    return torch.where(u == 1, theta, (1 - u) * theta / factor + u * theta)


class _ByParts(Rotary):
    """A rotary embedding whose context was extended by parts."""

    class Config(Rotary.Config):
        """What both methods need."""

        base: Annotated[float, Field(gt=1)] = 10000.0
        """Base of the geometric progression of the trained frequencies."""
        factor: Annotated[float, Field(ge=1)] = 1.0
        """How many times longer sequences become; 1 extends nothing."""
        original_context: PositiveInt | None = None
        """Sequence length before the extension. By default `context`, and sequences of factor · context are meant; if
        it is given, `context` is the length after the extension, as in the configs of Hugging Face."""

    config: Config

    @property
    def context(self) -> int:
        """The longest sequence this embedding is meant for."""
        c = self.config
        return int(c.factor * c.context) if c.original_context is None else c.context

    @property
    def trained_context(self) -> int:
        """The sequence length before the extension."""
        return self.config.original_context or self.config.context


class YarnRotary(_ByParts):
    """YaRN: slow feature pairs are interpolated, fast ones are not, and attention becomes sharper.

    Scores are divided by a temperature t with √(1/t) = 0.1 ln factor + 1, by which the rotation multiplies queries and
    keys (`scale`). Source: arXiv 2309.00071, Section 3.2, Eq. 17–20, and Section 3.4, Eq. 22.
    """

    class Config(_ByParts.Config):
        """Options of YaRN."""

        beta_fast: Annotated[float, Field(gt=0)] = 32.0
        """Turns within the trained context from which on a pair is not interpolated (β)."""
        beta_slow: Annotated[float, Field(gt=0)] = 1.0
        """Turns within the trained context up to which a pair is interpolated (α)."""
        attention_factor: Annotated[float, Field(gt=0)] | None = None
        """What queries and keys are multiplied by: √(1/t); by default 0.1 ln factor + 1 (Section 3.4, Eq. 22)."""
        truncate: bool = True
        """Whether the pairs between which the interpolation grows are rounded outwards to whole ones."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.beta_slow >= self.beta_fast:
                raise ValueError(f"beta_slow must be less than beta_fast, {self.beta_fast:g}, got {self.beta_slow:g}")
            return self

    config: Config
    examples = ({"factor": 4.0}, {"factor": 4.0, "original_context": 8, "attention_factor": 1.0, "truncate": False})

    @property
    def scale(self) -> float:
        """√(1/t), by which the lengths of queries and keys grow."""
        given = self.config.attention_factor
        return 0.1 * log(self.config.factor) + 1 if given is None else given

    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`, which also multiplies by `scale`."""
        angles = positions.unsqueeze(-1) * self.frequencies.to(positions.device)
        return Rotation.of(angles, self.config.layout, self.scale)

    def _frequencies(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, " r2"]:
        c = self.config
        ends = {"fast": c.beta_fast, "slow": c.beta_slow, "truncate": c.truncate}
        return by_rotations(super()._frequencies(dtype), c.base, c.factor, self.trained_context, **ends)


class Llama3Rotary(_ByParts):
    """The scaling of Llama 3.1: as YaRN's by parts, with other bounds, and without its temperature.

    Llama 3.1 and 3.3 have factor 8, Llama 3.2 factor 32, all with original context 8192 and base 500000. Source: rope
    type `llama3` of Hugging Face transformers, after Meta's code; interpolation by parts is the idea of arXiv
    2309.00071, Section 3.2.
    """

    class Config(_ByParts.Config):
        """Options of Llama 3.1's scaling."""

        low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
        """Turns within the trained context up to which a pair is interpolated."""
        high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
        """Turns within the trained context from which on a pair is not interpolated."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low_freq_factor >= self.high_freq_factor:
                raise ValueError(
                    f"low_freq_factor must be less than high_freq_factor, {self.high_freq_factor:g}, "
                    f"got {self.low_freq_factor:g}"
                )
            return self

    config: Config
    examples = ({"factor": 8.0}, {"factor": 8.0, "original_context": 8, "base": 500000.0})

    def _frequencies(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, " r2"]:
        c = self.config
        theta = super()._frequencies(dtype)
        return by_wavelength(theta, c.factor, self.trained_context, low=c.low_freq_factor, high=c.high_freq_factor)
