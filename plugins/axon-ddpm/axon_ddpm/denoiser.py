"""The interface of models trained by diffusion: a noisy picture and its place in the chain in, a prediction out."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from axon_core.interfaces import Model

__all__ = ["Denoiser"]


class Denoiser(Model):
    """A model `(b c h w), (b) -> (b o h w)` of noisy pictures; trainer `ddpm` trains any that is registered."""

    class Config(Model.Config):
        """What the trainer tells every denoiser about the pictures."""

        size: PositiveInt
        """Height and width of the pictures."""
        channels: PositiveInt = 3
        """Channels c of the pictures."""
        out_channels: PositiveInt = Field(default_factory=lambda given: given["channels"])
        """Channels o of the output: c, or 2c if it also predicts the variance."""
        n_classes: NonNegativeInt = 0
        """Classes the pictures fall into; 0 if there are none."""

    config: Config

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], classes: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        """Return the prediction for pictures diffused t + 1 times.

        The class `n_classes` stands for no class, and so does None.
        """
