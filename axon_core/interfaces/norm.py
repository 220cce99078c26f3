"""The interface of normalisation layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import config


class Norm(nn.Module, ABC):
    """A normalisation of the last axis: `(... d) -> (... d)`, each vector by itself.

    The statistics are computed in float32 at least, whatever the dtype of `x`; the result has the dtype of `x`.
    """

    class Config(config.Config):
        """What a model passes down to every norm."""

        dim: PositiveInt
        """Size d of the normalised axis."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options the conformance kit builds it with, on top of what a model passes down; one variant each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return `x`, normalised along its last axis."""
