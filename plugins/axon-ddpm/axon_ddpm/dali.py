"""Dali paints with a trained model: new pictures, variations, the missing part of one, the steps between two."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from axon_core import Count, Key, UsageError, at, config, validate, widen
from axon_core.registry import Spec
from axon_ddpm.classes import Classes, class_number, listed
from axon_ddpm.denoiser import Denoiser
from axon_ddpm.diffusion import Diffusion, Prediction
from axon_ddpm.process import Process, Spacing, spaced
from axon_ddpm.samplers import SAMPLERS, Frame, Noise, Predict

__all__ = ["Dali", "PictureNoise", "filling", "predictor"]

_ROUNDING = 1e-4  # how far beyond [−1, 1] a computed picture may be
_ALWAYS = "this model was trained with the class of every picture, and has no unlabelled mode"


class PictureNoise:
    """Standard normal noise for pictures, each with a generator of its own.

    So a picture depends only on the key and its own number, not on the other pictures of its batch. Its noise is on
    the device of `like`, and in its dtype.
    """

    def __init__(self, key: Key, pictures: Sequence[int], shape: tuple[int, ...], like: Float[Tensor, ...]) -> None:
        self._generators = [key(number).generator() for number in pictures]
        self._shape, self._like = shape, like

    def __call__(self) -> Float[Tensor, "b c h w"]:
        """Return the next numbers."""
        drawn = [torch.randn(self._shape, generator=own, dtype=torch.float32) for own in self._generators]
        return torch.stack(drawn).to(self._like)


def predictor(
    model: Denoiser,
    diffusion: Diffusion,
    process: Process,
    classes: Int[Tensor, " b"] | None = None,
    guidance: float = 1.0,
) -> Predict:
    """Return a function that predicts with `model` at an index of `process`, the diffusion's chain or a respaced one.

    With classes the output is u + guidance · (c − u), where u is predicted without and c with the class: 1 is the
    model's own prediction, more than 1 exaggerates the class, 0 ignores it (arXiv 2207.12598, where guidance is 1 + w).
    A learned variance is not exaggerated: it is the one predicted with the class.
    """
    classes = None if guidance == 0 else classes

    def predict(x: Tensor, i: int) -> Prediction:
        b = len(x)
        t = torch.full((b,), int(process.timesteps[i]), device=x.device)
        with torch.no_grad():
            if classes is None or guidance == 1:
                output = model(x, t, classes)
            else:
                both = torch.cat((torch.full_like(classes, model.config.n_classes), classes))
                without, given = widen(model(torch.cat((x, x)), torch.cat((t, t)), both)).chunk(2)
                mean, other = given[:, : x.shape[1]], without[:, : x.shape[1]]
                output = torch.cat((other + guidance * (mean - other), given[:, x.shape[1] :]), 1)
        index = torch.full_like(t, i)
        return diffusion.read(output, x, t, clip=diffusion.config.clip, within=process, index=index)

    return predict


def filling(predict: Predict, process: Process, picture: Float[Tensor, "c h w"], mask: Bool[Tensor, "h w"]) -> Predict:
    """Return `predict` with the picture put in where the mask is False, so that only the rest is painted.

    The known part of x_0 replaces its prediction, and the noise follows from it. Any sampler then moves the known part
    along the posterior of the true picture, whose variance is β̃ whatever the model's is, and ends on it.
    """
    small = process.log_variance_small.tolist()

    def predict_rest(x: Tensor, i: int) -> Prediction:
        found, index = predict(x, i), torch.full((len(x),), i, device=x.device)
        x0, noise = process.corrected(torch.where(mask, found.x0, picture), x, index)
        return Prediction(x0, noise, torch.where(mask, found.log_variance, small[i]))

    return predict_rest


class Dali:
    """A model and how to sample from it; every method yields the frames of one batch of pictures.

    Pictures are `(c h w)` over [−1, 1]. For a given seed, picture n is the same in any batch; `first` is the number of
    the batch's first picture.

    Attributes:
        model: the model that predicts, in its current mode.
        diffusion: how to read its output.
        config: how to sample from it.

    Raises:
        UnknownKey: there is no such sampler.
        UsageError: there are more steps than the chain has, the model cannot be guided, or the number of class names is
            not the model's.
    """

    class Config(config.Config):
        """How to sample."""

        sampler: Spec = Spec(type="ddim")
        """The sampler: `ddpm`, `ddim`, `dpm_solver`, or another that is registered."""
        steps: Count | None = None
        """Steps from noise to picture; left out, 50, or all of the chain where it is shorter."""
        spacing: Spacing | None = None
        """Which steps of the chain, see `axon_ddpm.process.SPACINGS`; left out, those that suit the sampler."""
        guidance: float = 1.0
        """How much to exaggerate the class: 1 leaves it as it is, 0 ignores it."""

    def __init__(self, model: Denoiser, diffusion: Diffusion, config: Config, *, seed: int = 0) -> None:
        self.model, self.diffusion, self.config = model, diffusion, config
        self._key = Key((seed, "sample"))
        with at("sampler"):
            self._sampler = SAMPLERS.build(config.sampler)
        names, n_classes = diffusion.config.class_names, model.config.n_classes
        if names and len(names) != n_classes:
            raise UsageError(
                f"the diffusion must name as many classes as the model has, {n_classes}, got {len(names)} class_names"
            )
        if config.guidance != 1 and self._always_classed:
            raise UsageError(
                f"{_ALWAYS}, which guidance {config.guidance:g} needs; set it to 1, or train with "
                "trainer.unlabelled=0.1"
            )
        total = len(diffusion.process)
        steps = min(50, total) if config.steps is None else config.steps
        chosen = spaced(steps, diffusion.process, config.spacing or self._sampler.spacing)
        self._process = diffusion.process.respaced(chosen)
        if diffusion.config.variance == "learned" and len(self._process) < total and self._sampler.uses_variance:
            raise UsageError(
                f"a variance learned without bounds fits only the {total} steps it was learned for, so the sampler "
                f"{config.sampler.type} cannot take {len(self._process)}; set steps to {total}, or use the sampler "
                "ddim or dpm_solver"
            )

    @classmethod
    def load(cls, folder: Path | str, *, seed: int = 0, **settings: object) -> Self:
        """Load the model that a training run exported into `folder`; `settings` are those of `Config`.

        Raises:
            CheckpointError: it is missing, damaged or not a denoiser.
            ConfigError: a setting breaks a rule.
        """
        model, diffusion = Denoiser.load(folder), Diffusion.load(Path(folder))
        return cls(model.eval(), diffusion, validate(cls.Config, settings), seed=seed)

    @property
    def steps(self) -> int:
        """The number of steps from noise to picture."""
        return len(self._process)

    def steps_back(self, strength: float) -> int:
        """Return how many steps lead from a picture noised by `strength` back to a picture.

        Raises:
            UsageError: it is not above 0 and at most 1.
        """
        if not 0 < strength <= 1:
            raise UsageError(f"strength must be above 0 and at most 1, got {strength:g}")
        return max(1, round(strength * self.steps))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a picture."""
        c = self.model.config
        return c.channels, c.size, c.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes by number; the numbers themselves if they were never named."""
        return self.diffusion.config.class_names or tuple(map(str, range(self.model.config.n_classes)))

    def sample(self, n: int, classes: Classes | None = None, *, first: int = 0) -> Generator[Frame]:
        """Paint n new pictures, of the given classes (by number or name) if the model has classes.

        Raises:
            UsageError: n is less than 1, or the classes do not fit the model.
        """
        noise = self._noise(n, first)
        return self._run(self._process, noise(), noise, classes)

    def vary(
        self,
        picture: Float[Tensor, "c h w"],
        n: int,
        strength: float = 0.5,
        classes: Classes | None = None,
        *,
        first: int = 0,
    ) -> Generator[Frame]:
        """Paint n pictures from a noised one (arXiv 2108.01073), by only the last share `strength` of all steps.

        The share is of the sampler's steps. Half of those of `ddpm` and `ddim` cover half of the chain, but the last
        quarter of `dpm_solver`'s, whose strides of log SNR are nearly equal, covers a thirtieth of a cosine chain.

        Raises:
            UsageError: n is less than 1, the picture is not of the model's size or not over [−1, 1],
                `strength` is not above 0 and at most 1, or the classes do not fit the model.
        """
        noise, process = self._noise(n, first), self._partial(strength)
        x = self._diffused(process, self._fitting(picture).expand(n, *self.shape), noise())
        return self._run(process, x, noise, classes)

    def inpaint(
        self,
        picture: Float[Tensor, "c h w"],
        mask: Bool[Tensor, "h w"],
        n: int,
        classes: Classes | None = None,
        *,
        first: int = 0,
    ) -> Generator[Frame]:
        """Paint the part that the mask marks, n times, and keep the rest of the picture as it is.

        Raises:
            UsageError: n is less than 1, picture or mask is not of the size of the model's pictures, the picture is
                not over [−1, 1], the mask holds values other than True and False or marks nothing, or the classes do
                not fit the model.
        """
        known = self._fitting(picture), self._marked(mask)
        noise = self._noise(n, first)
        return self._run(self._process, noise(), noise, classes, known)

    def interpolate(
        self,
        one: Float[Tensor, "c h w"],
        other: Float[Tensor, "c h w"],
        shares: Sequence[float],
        strength: float = 0.5,
        classes: Classes | None = None,
    ) -> Generator[Frame]:
        """Paint a picture for each share of `other`, from a mixture of the two, both diffused with the same noise.

        Source: arXiv 2006.11239, Section 4.4. All share their other random numbers too, so that only the mixture
        differs.

        Raises:
            UsageError: a picture is not of the model's size or not over [−1, 1], there is no share or one outside 0 to
                1, `strength` is not above 0 and at most 1, or the classes do not fit the model.
        """
        if wrong := [share for share in shares if not 0 <= share <= 1]:
            raise UsageError(f"the shares of the other picture must be between 0 and 1, got {wrong[0]:g}")
        if not shares:
            raise UsageError("there must be at least one share of the other picture, got none")
        process, single, n = self._partial(strength), self._noise(1, 0), len(shares)
        share = torch.tensor(shares, dtype=torch.float32).to(self._weight)[:, None, None, None]
        mixed = (1 - share) * self._fitting(one) + share * self._fitting(other)
        x = self._diffused(process, mixed, single().expand(n, *self.shape))
        return self._run(process, x, lambda: single().expand(n, *self.shape), classes)

    def _run(
        self,
        process: Process,
        x: Tensor,
        noise: Noise,
        classes: Classes | None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Generator[Frame]:
        labels = self._labels(len(x), classes)
        predict = predictor(self.model, self.diffusion, process, labels, self.config.guidance)
        if known is not None:
            predict = filling(predict, process, *known)
        return self._sampler.run(process, predict, x, noise)

    def _partial(self, strength: float) -> Process:
        """Return the chain's first steps: those that noise a picture and then lead it back."""
        return self._process.respaced(torch.arange(self.steps_back(strength)))

    def _diffused(self, process: Process, x0: Tensor, noise: Tensor) -> Tensor:
        return process.diffuse(x0, noise, torch.full((len(x0),), len(process) - 1, device=x0.device))

    def _noise(self, n: int, first: int) -> PictureNoise:
        if n < 1:
            raise UsageError(f"the number of pictures must be at least 1, got {n}")
        return PictureNoise(self._key, range(first, first + n), self.shape, self._weight)

    @property
    def _weight(self) -> Tensor:
        """One of the model's: its device and dtype are those of the pictures."""
        return next(self.model.parameters())

    def _fitting(self, picture: Tensor) -> Tensor:
        if tuple(picture.shape) != self.shape:
            raise UsageError(
                f"the picture must have the model's shape (channels, height, width) {self.shape}, got "
                f"{tuple(picture.shape)}; resize it first"
            )
        if not picture.is_floating_point() or not bool((picture.abs() <= 1 + _ROUNDING).all()):
            low, high = picture.min().item(), picture.max().item()  # both are NaN if any value is
            raise UsageError(
                f"the picture must be floating-point numbers from −1 to 1, got {picture.dtype} from {low:g} to "
                f"{high:g}; axon_ddpm.pictures.to_unit converts bytes"
            )
        return picture.to(self._weight)

    def _marked(self, mask: Tensor) -> Bool[Tensor, "h w"]:
        """Return where the mask is True or 1."""
        if tuple(mask.shape) != self.shape[1:]:
            raise UsageError(
                f"the mask must have the picture's size, {self.shape[1]}×{self.shape[2]}, got "
                f"{'×'.join(map(str, mask.shape))}"
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            wrong = mask[(mask != 0) & (mask != 1)][0].item()
            raise UsageError(f"the mask must be True or False everywhere, got {wrong:g}; compare it with a threshold")
        if not bool(mask.any()):
            raise UsageError(
                "the mask marks nothing to repaint: it is False, or black, everywhere; mark the part to change"
            )
        return mask.bool().to(self._weight.device)

    @property
    def _always_classed(self) -> bool:
        return bool(self.model.config.n_classes) and not self.diffusion.config.unlabelled

    def _labels(self, n: int, classes: Classes | None) -> Int[Tensor, " b"] | None:
        known = self.class_names
        if classes is None:
            if self.config.guidance not in (0, 1):
                raise UsageError(f"guidance {self.config.guidance:g} amplifies a class, so it needs one")
            if self._always_classed:
                raise UsageError(f"{_ALWAYS}; give one of {listed(known)}, or train with trainer.unlabelled=0.1")
            return None
        chosen = [classes] * n if isinstance(classes, int | str) else list(classes)
        if not known:
            raise UsageError("this model was trained without classes, so it takes none; leave it out")
        if len(chosen) != n:
            raise UsageError(f"give one class for all, or one for each of the {n} pictures, got {len(chosen)}")
        return torch.tensor([class_number(label, known) for label in chosen], device=self._weight.device)
