"""Linear maps whose weight is in NF4, for inference and below adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from axon_core.nn import LevelLinear, Quantization, TiedLinear
from axon_qlora.dynamic import from_double, to_double
from axon_qlora.nf4 import LEVELS, to_nf4

__all__ = ["NF4", "NF4Linear"]


class NF4Linear(LevelLinear):
    """A linear map with a frozen weight in NF4: `(... d) -> (... r)`, y = x Wᵀ + b, Wᵢ = levels[codeᵢ] · a.

    Each 64 consecutive numbers of the weight share a scale a. W is widened to x's dtype for the product, in pieces, and
    again in the backward pass: dx = dy W. The weight has no gradient. Source: 2305.14314, Section 3.

    Args:
        original: the map it replaces; one on the meta device gets its weight when it is loaded.
        double: whether the scales have 8 bits themselves (double quantisation): 4.127 bits a weight, not 4.5.
    """

    levels: ClassVar[tuple[float, ...]] = LEVELS
    block: ClassVar[int] = 64
    absmax: Tensor
    nested: Tensor | None
    offset: Tensor | None

    def __init__(self, original: nn.Linear | TiedLinear, *, double: bool = True) -> None:
        self._nest = double
        super().__init__(original)

    def take(self, weight: Float[Tensor, "r d"]) -> None:
        """Round a weight to NF4."""
        codes, absmax = to_nf4(weight, self.block)
        nested = offset = None
        if self._nest:
            absmax, nested, offset = to_double(absmax)
        for name, tensor in {"weight": codes, "absmax": absmax, "nested": nested, "offset": offset}.items():
            self.register_buffer(name, tensor)

    def scales(self) -> Float[Tensor, " blocks"]:
        """Return a of each block in float32."""
        if self.nested is None or self.offset is None:
            return self.absmax
        return from_double(self.absmax, self.nested, self.offset)


class NF4(Quantization):
    """4-bit NormalFloat, whose levels are quantiles of a normal distribution. Source: 2305.14314, Section 3."""

    class Config(Quantization.Config):
        """How the scales are stored."""

        double: bool = True
        """Whether the scales have 8 bits themselves (double quantisation): 4.127 bits a weight, not 4.5."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({}, {"double": False})
    config: Config

    def quantize(self, original: nn.Linear | TiedLinear) -> NF4Linear:
        """Return the map with its weight in NF4."""
        return NF4Linear(original, double=self.config.double)
