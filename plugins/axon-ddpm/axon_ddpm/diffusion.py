"""A diffusion: the chain, what the model's output means in it, and how the reverse step follows from that."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from axon_core import CheckpointError, ConfigError, at, config, parse_json, to_json, validate, widen
from axon_core.checkpoint import add_to_manifest, claimed_files, read_checked, write_text, writing
from axon_core.registry import Spec
from axon_ddpm.losses import bound_term
from axon_ddpm.parameterisation import Parameterisation, Variance, log_variance, target, unmix
from axon_ddpm.process import Process
from axon_ddpm.schedule import NOISE_SCHEDULES

__all__ = ["Diffusion", "Prediction"]

_FILE = "diffusion.json"


class Prediction(NamedTuple):
    """What a model's output predicts at x_t."""

    x0: Float[Tensor, "b c h w"]
    """The picture."""
    noise: Float[Tensor, "b c h w"]
    """The noise: x_t = √ᾱ x_0 + √(1 − ᾱ) ε."""
    log_variance: Float[Tensor, "b _ _ _"]
    """log σ² of the reverse step."""


class Diffusion:
    """A noising chain, and how to read a model's output in it (arXiv 2006.11239, Sections 2 and 3).

    Attributes:
        config: its settings.
        process: the forward process, of all T steps.
    """

    class Config(config.Config):
        """Settings that a trained model cannot be used without."""

        schedule: Spec = Spec(type="linear")
        """The noise schedule: `linear`, `cosine`, `scaled_linear`, or another that is registered."""
        parameterisation: Parameterisation = "epsilon"
        """What the model predicts: the noise, the picture, the velocity, or the posterior's mean μ̃."""
        variance: Variance = "fixed_large"
        """σ² of the reverse step: β̃, β, learned between the two, or learned without bounds."""
        clip: bool = True
        """Whether predicted pictures are clipped to [−1, 1], the range of all pictures."""
        levels: int = Field(default=256, ge=2)
        """Values a channel of a pixel can take, over [−1, 1]; the trainer takes them from the data."""
        unlabelled: bool = True
        """Whether a model with classes was also trained without them, as guidance needs; set by the trainer."""
        class_names: tuple[str, ...] = ()
        """Names of the classes by number; the trainer takes them from the data. Without names they are numbers."""

        @field_validator("class_names")
        @classmethod
        def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"each class must have its own name, got {twice!r} more than once")
            return names

    def __init__(self, config: Config) -> None:
        self.config = config
        with at("schedule"):
            self.process = Process(NOISE_SCHEDULES.build(config.schedule).betas())

    @property
    def learns_variance(self) -> bool:
        """Whether the model's output has a second half that gives the variance."""
        return self.config.variance in ("learned_range", "learned")

    def target(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return what the model should output for x_t."""
        return target(self.config.parameterisation, self.process, x0, noise, t)

    def split(
        self, output: Float[Tensor, "b o h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
        """Return the output in float32 at least, with its second half split off if that gives the variance."""
        if not self.learns_variance:
            return widen(output), None
        mean, raw = widen(output).chunk(2, 1)
        return mean, raw

    def read(
        self,
        output: Float[Tensor, "b o h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        *,
        clip: bool = False,
        within: Process | None = None,
        index: Int[Tensor, " b"] | None = None,
    ) -> Prediction:
        """Return what the output for x_t predicts at place t in the chain.

        With `clip` the picture is clipped to [−1, 1], and the noise is the one that then leads to x_t. `within` is a
        respaced chain whose step `index` is at t: its steps are longer, and so is their variance.
        """
        output, raw = self.split(output)
        x0, noise = unmix(self.config.parameterisation, self.process, output, x_t, t)
        if clip:
            x0, noise = self.process.corrected(x0.clamp(-1, 1), x_t, t)
        chain, place = (self.process, t) if within is None or index is None else (within, index)
        return Prediction(x0, noise, log_variance(self.config.variance, chain, raw, place, output.dtype))

    def bound(
        self,
        output: Float[Tensor, "b o h w"],
        x0: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        *,
        clip: bool = False,
    ) -> Float[Tensor, " b"]:
        """Return the term of the variational bound at t, in bits per dimension."""
        found = self.read(output, x_t, t, clip=clip)
        mean = self.process.posterior_mean(found.x0, x_t, t)
        return bound_term(self.process, x0, x_t, t, mean, found.log_variance, self.config.levels)

    def save(self, folder: Path) -> None:
        """Write the settings beside a model.

        Raises:
            CheckpointError: the folder cannot be written to.
            UsageError: another process is saving into it; the message names that process.
        """
        with claimed_files(folder, _FILE), writing(folder):
            write_text(folder / _FILE, to_json(self.config.model_dump(mode="json"), indent=1))
            add_to_manifest(folder, _FILE)

    @classmethod
    def build(cls, **values: object) -> Self:
        """Build a diffusion from the values of its config. Raises `ConfigError` if one breaks a rule."""
        return cls(validate(cls.Config, values))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` if it is missing or damaged."""
        try:
            return cls.build(**parse_json(read_checked(folder / _FILE).decode("utf-8-sig")))
        except OSError as error:
            raise CheckpointError(
                f"{folder} does not contain a diffusion model: {_FILE} cannot be read ({error.strerror})"
            ) from None
        except (ValueError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{folder / _FILE} is damaged: {error}") from None
