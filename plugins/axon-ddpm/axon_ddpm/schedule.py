"""Noise schedules, in a registry of their own: how much noise each step of the forward process adds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from jaxtyping import Float64
from pydantic import Field, model_validator
from torch import Tensor

from axon_core import Count, config
from axon_core.registry import Registry

__all__ = ["NOISE_SCHEDULES", "Cosine", "Linear", "NoiseSchedule", "ScaledLinear"]


class NoiseSchedule(ABC):
    """The variances β_0 … β_{T−1} that a chain of T steps adds, one per step, each between 0 and 1."""

    class Config(config.Config):
        """What every noise schedule has."""

        steps: Count = 1000
        """Length T of the chain (arXiv 2006.11239, Section 4: 1000)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def betas(self) -> Float64[Tensor, " t"]:
        """Return the variances in float64; the first is the one that applies to a clean picture."""


class Linear(NoiseSchedule):
    """β from `start` to `end` in equal steps (arXiv 2006.11239, Section 4).

    Both ends are those for 1000 steps: in a chain of T they are multiplied by 1000 / T, so that equally little of the
    picture is left at its end.
    """

    class Config(NoiseSchedule.Config):
        """The two ends."""

        start: float = Field(default=1e-4, gt=0, lt=1)
        """β of the first of 1000 steps (Section 4)."""
        end: float = Field(default=0.02, gt=0, lt=1)
        """β of the last of 1000 steps (Section 4)."""

        @model_validator(mode="after")
        def _below_one(self) -> Self:
            if (last := max(self.start, self.end) * 1000 / self.steps) >= 1:
                raise ValueError(
                    f"the largest variance, {max(self.start, self.end)} · 1000 / steps, must be below 1, got {last:g}; "
                    f"give more steps than {self.steps}, or the schedule 'cosine'"
                )
            return self

    config: Config
    _power: ClassVar[int] = 1

    def betas(self) -> Float64[Tensor, " t"]:
        """Return the variances."""
        c, power = self.config, self._power
        roots = torch.linspace(c.start ** (1 / power), c.end ** (1 / power), c.steps, dtype=torch.float64)
        return roots**power * (1000 / c.steps)


class ScaledLinear(Linear):
    """√β from √start to √end in equal steps, where `Linear` has β itself (arXiv 2006.11239, Section 4).

    It is the schedule in the code of latent diffusion (arXiv 2112.10752).
    """

    _power = 2


class Cosine(NoiseSchedule):
    """ᾱ(t) = f(t) / f(0) with f(t) = cos²((t/T + s) / (1 + s) · π/2); β = min(1 − ᾱ(t + 1) / ᾱ(t), 0.999).

    Source: arXiv 2102.09672, Section 3.2.
    """

    class Config(NoiseSchedule.Config):
        """Its offset and its bound."""

        offset: float = Field(default=0.008, ge=0)
        """The offset s, which keeps the first β from being too small (Section 3.2)."""
        largest: float = Field(default=0.999, gt=0, lt=1)
        """Bound on β near the end of the chain (Section 3.2)."""

    config: Config

    def betas(self) -> Float64[Tensor, " t"]:
        """Return the variances."""
        c = self.config
        t = torch.arange(c.steps + 1, dtype=torch.float64) / c.steps
        f = torch.cos((t + c.offset) / (1 + c.offset) * math.pi / 2).square()
        return (1 - f[1:] / f[:-1]).clamp(max=c.largest)


NOISE_SCHEDULES: Registry[NoiseSchedule] = Registry("noise_schedule", NoiseSchedule)
"""Noise schedules by key; a plugin adds one in the entry-point group `axon.v1.noise_schedule`."""
