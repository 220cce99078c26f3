"""Trainer `ddpm`: denoising of pictures at all places in the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from axon_core import ConfigError, ContractError, Count, Key, UsageError, assembled, at, validate, widen
from axon_core.text import Order
from axon_core.training import Recipe, Trainer, coverage, evenly_spaced, new_model, track_own
from axon_ddpm.bound import held_out
from axon_ddpm.classes import captions
from axon_ddpm.dali import Dali
from axon_ddpm.data import PictureConfig, PictureData, PictureSplit
from axon_ddpm.denoiser import Denoiser
from axon_ddpm.diffusion import Diffusion
from axon_ddpm.losses import min_snr_weight, squared_error
from axon_ddpm.pictures import to_bytes, to_unit
from axon_ddpm.quality import comparison, with_nearest, with_nearest_captions
from axon_ddpm.samplers import last_frame

__all__ = ["DDPMTrainer"]

_ROWS = 128  # pictures sampled at once
LossKind = Literal["simple", "min_snr", "variational", "hybrid"]


class DDPMTrainer(Trainer):
    """Minimise the loss of denoising pictures x_t = √ᾱ x_0 + √(1 − ᾱ) ε, t uniform (arXiv 2006.11239, Algorithm 1).

    Works with any registered `Denoiser`, under the role `model`. A picture's t, noise and flip depend on its number
    alone, so neither resuming a run nor a different number of processes changes them.

    Attributes:
        beside: samples of the last evaluation, each followed by the training picture nearest to it; initially None.

    Raises:
        ContractError: the model is not a Denoiser.
        ConfigError: the diffusion's config gives levels or class names that differ from the data's, or gives
            `unlabelled`.
        UsageError: `sampling.guidance` exaggerates a class, but the pictures have none, or are never trained on without
            one; or the pictures have classes and `unlabelled` hides all of them.
    """

    class Config(Trainer.Config):
        """Settings of denoising, in addition to those of every trainer."""

        diffusion: Diffusion.Config = Field(default_factory=Diffusion.Config)
        """The chain, and what the model predicts in it; `levels` and `class_names` come from the data."""
        loss: LossKind = "simple"
        """The plain squared error (Eq. 14), weighted by min(snr, γ) (2303.09556), the variational bound (Eq. 5), or the
        first plus `bound_weight` times the last, which then trains the variance alone (2102.09672, Section 3.1)."""
        gamma: PositiveFloat = 5.0
        """γ of `min_snr` (2303.09556)."""
        bound_weight: NonNegativeFloat = 0.001
        """Weight of the bound in `hybrid` (2102.09672, Section 3.1)."""
        flip: bool = False
        """Whether half of the pictures, at random, are mirrored left to right (Appendix B)."""
        unlabelled: float = Field(default=0.1, ge=0, le=1)
        """Share of pictures trained on without their class, so that a class can be exaggerated later (2207.12598)."""
        sampling: Dali.Config = Field(default_factory=Dali.Config)
        """How pictures are sampled for grids and for the evaluation."""
        grid_every: PositiveInt | None = None
        """Steps between grids of samples, `samples/step-<n>.png` in the run folder; left out, only at the end."""
        grid: Count = 64
        """Pictures in a grid."""
        bound_steps: Count = 20
        """Places in the chain at which a held-out picture is evaluated, besides the first; all, if there are fewer."""
        compared: int = Field(1000, ge=0, le=65_536)
        """How many samples an evaluation compares with the data, at most as many as held-out pictures that it reads; 0
        for none. See `axon_ddpm.quality.comparison`, which needs 2 for all its measures."""
        eval_images: PositiveInt = 10_000
        """The most held-out pictures that an evaluation reads; if there are more, they are evenly spaced."""

        @model_validator(mode="after")
        def _trains_variance(self) -> Self:
            learned = self.diffusion.variance in ("learned_range", "learned")
            if learned and self.loss not in ("variational", "hybrid"):
                raise ValueError(
                    f"loss {self.loss!r} does not train a variance that is {self.diffusion.variance}; use "
                    "'hybrid' or 'variational', or a fixed variance"
                )
            if self.loss == "hybrid" and not learned:
                raise ValueError(f"loss 'hybrid' trains a learned variance, got {self.diffusion.variance!r}")
            for name, loss in (("gamma", "min_snr"), ("bound_weight", "hybrid")):
                if self.loss != loss and (value := getattr(self, name)) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} belongs to the loss {loss!r}, got {name} {value:g} with {self.loss!r}; set "
                        f"trainer.loss={loss}, or leave it out"
                    )
            return self

    config: Config
    unit = "pictures"
    next_command = "axon sample {run}"
    trainable = ("model",)
    collects_ahead = True
    examples = tuple(
        {
            "model": {"type": "unet", "width": 8, "groups": 4, "multipliers": [1, 2], "blocks": 1, "attention_at": [4]},
            "trainer": {
                "type": "ddpm",
                "batch_size": 4,
                "bound_steps": 2,
                "compared": compared,
                "diffusion": {"schedule": {"type": "cosine", "steps": 8}, **diffusion},
                "sampling": {"steps": 2},
                "loss": loss,
            },
            "data": {"path": str(Path(__file__).with_name("example.npz")), "classes": classes, "held_out": 0.25},
        }
        for diffusion, loss, classes, compared in (
            ({}, "simple", True, 2),
            ({"parameterisation": "v"}, "min_snr", False, 0),
            ({"variance": "learned_range"}, "hybrid", False, 0),
            ({"parameterisation": "mean", "variance": "learned"}, "variational", False, 0),
        )
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: PictureData) -> None:
        super().__init__(config, models)
        model = models["model"]
        if not isinstance(model, Denoiser):
            raise ContractError(f"the trainer ddpm needs a Denoiser as its model, got a {type(model).__name__}")
        self.model, self.data = model, data
        known = {"levels": data.levels, "unlabelled": config.unlabelled > 0, "class_names": data.names}
        with at("trainer", "diffusion"):
            for name, value in known.items():
                given, default = getattr(config.diffusion, name), Diffusion.Config.model_fields[name].default
                if given not in (value, default):
                    raise ConfigError([((name,), f"must be {value}, by the data and the trainer, got {given}")])
            self.diffusion = Diffusion(config.diffusion.model_copy(update=known))
        with at("trainer", "sampling"):
            self.dali = Dali(model, self.diffusion, config.sampling, seed=config.seed)
        if config.sampling.guidance not in (0, 1) and not data.names:  # otherwise only the first grid would raise
            raise UsageError(
                f"trainer.sampling.guidance {config.sampling.guidance:g} amplifies a class, but the pictures have "
                "none; set data.classes to true, or the guidance to 1"
            )
        if config.unlabelled == 1 and data.names:
            raise UsageError(
                "trainer.unlabelled 1 hides every class of the pictures from the model; lower it, or set "
                "data.classes to false"
            )
        self.beside: tuple[UInt8[Tensor, "m c h w"], list[str]] | None = None
        self._order = Order(len(data.train), Key((config.seed, "order")))

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe's tables `model`, `data` and `trainer`; see `Trainer.from_recipe`.

        Raises:
            CheckpointError: `saved` holds no diffusion.
            DataError: the pictures cannot be used, or have classes other than those named in `saved`.
            UsageError: the diffusion in `saved` differs from the recipe's in its schedule or parameterisation.
        """
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        names: tuple[str, ...] = ()
        if saved is not None:
            trained = Diffusion.load(saved).config
            for name in ("schedule", "parameterisation"):
                if (before := getattr(trained, name)) != (now := getattr(config.diffusion, name)):
                    raise UsageError(
                        f"a trained model keeps its diffusion: trainer.diffusion.{name} was {before!r} and is now "
                        f"{now!r}; restore it, or start a new run"
                    )
            names = trained.class_names
        with at("data"):
            data = PictureData.load(validate(PictureConfig, recipe.data), names)
        doubled = config.diffusion.variance in ("learned_range", "learned")
        with at("model"):
            model = new_model(
                recipe.model,
                config.seed,
                size=data.size,
                channels=data.channels,
                out_channels=data.channels * (2 if doubled else 1),
                n_classes=len(data.names),
            )
        return cls(config, {"model": model}, data)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the pictures of a step, their classes, and their numbers in the run."""
        size = self.config.batch_size
        picks = self._order.batch(step, size)
        number = torch.arange(step * size, (step + 1) * size)
        return {"image": self.data.train.images[picks], "class": self.data.train.labels[picks], "number": number}

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Draw what each picture is denoised from: its flip, its place t in the chain and its noise."""
        x0, classes, numbers = self.data.unit(batch["image"]), batch["class"], batch["number"].tolist()
        steps, shape = len(self.diffusion.process), tuple(x0.shape[1:])
        generators = [key(number).generator() for number in numbers]
        t = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators])
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])
        flip, unlabelled = torch.stack([torch.rand(2, generator=g, dtype=torch.float32) for g in generators]).unbind(1)
        if self.config.flip:
            x0 = torch.where((flip < 0.5).to(x0.device)[:, None, None, None], x0.flip(-1), x0)
        classes = classes.masked_fill((unlabelled < self.config.unlabelled).to(x0.device), len(self.data.names))
        return {"x0": x0, "noise": noise.to(x0.device), "t": t.to(x0.device), "class": classes}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the number of pictures."""
        return {"loss": len(data["t"])}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the loss, summed over the pictures."""
        return {"loss": self.losses(**{"classes" if k == "class" else k: v for k, v in data.items()})[0].sum()}

    def losses(
        self,
        x0: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        classes: Int[Tensor, " b"],
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b o h w"], Float[Tensor, "b c h w"]]:
        """Return the loss of each picture at its t, the model's output, and x_t."""
        diffusion, config = self.diffusion, self.config
        x_t = diffusion.process.diffuse(x0, noise, t)
        output = widen(self.models["model"](x_t, t, classes if self.data.names else None))
        if config.loss == "variational":  # T times a term is, on average, the sum of all terms
            return len(diffusion.process) * diffusion.bound(output, x0, x_t, t), output, x_t
        said, raw = diffusion.split(output)
        loss = squared_error(said, diffusion.target(x0, noise, t))
        if config.loss == "min_snr":
            weight = min_snr_weight(config.diffusion.parameterisation, diffusion.process, t, config.gamma, loss.dtype)
            loss = loss * weight
        if config.loss == "hybrid" and raw is not None:
            fixed_mean = torch.cat((said.detach(), raw), 1)
            bound = len(diffusion.process) * diffusion.bound(fixed_mean, x0, x_t, t)
            loss = loss + config.bound_weight * bound
        return loss, output, x_t

    def evaluate(self) -> dict[str, float]:
        """Return `loss` and `bits_per_dim` of the held-out pictures, and how samples compare with the data.

        At most `eval_images` held-out pictures are read. If those are not all, `images` says how many were read, and
        `held_out_images` how many there are. See `axon_ddpm.bound.held_out` and `axon_ddpm.quality.comparison`.
        """
        of = len(self.data.held_out)
        numbers = torch.tensor(evenly_spaced(of, self.config.eval_images))
        part = PictureSplit(self.data.held_out.images[numbers], self.data.held_out.labels[numbers])
        pictures = self.data.unit(part.images)
        found = held_out(
            self.losses,
            self.diffusion,
            pictures.to(self.config.dtype),
            part.labels,
            steps=self.config.bound_steps,
            key=Key((self.config.seed, "bound")),
            device=self.config.device,
        )
        if self.config.compared:
            found |= self._compared(pictures, part.labels)
        return {**found, **coverage("images", len(part), of)}

    def _compared(self, real: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> dict[str, float]:
        """Compare samples with at most `compared` held-out pictures; the first are kept to look at (`with_nearest`)."""
        n, named = min(self.config.compared, len(real)), bool(self.data.names)
        train, labels = self.data.unit(self.data.train.images), labels[:n]
        samples = to_unit(self.pictures(n, labels.tolist() if named else None))
        shown = samples[: self.config.grid]
        self.beside = (
            with_nearest(shown, train),
            with_nearest_captions(self.captions(len(shown), labels[: len(shown)].tolist())),
        )
        classes = (labels, self.data.train.labels) if named else None
        return comparison(samples, real[:n], train, classes, Key((self.config.seed, "classifier")))

    def pictures(self, n: int, classes: Sequence[int] | None = None) -> UInt8[Tensor, "n c h w"]:
        """Return n samples, of the given classes or, if the pictures have classes, of all in turn."""
        if classes is None and self.data.names:
            classes = [number % len(self.data.names) for number in range(n)]
        done = torch.zeros(n, *self.data.train.images.shape[1:], dtype=torch.uint8)
        for first in track_own(range(0, n, _ROWS), n, lambda _: _ROWS, "sampling"):
            part = None if classes is None else classes[first : first + _ROWS]
            found = to_bytes(last_frame(self.dali.sample(min(_ROWS, n - first), part, first=first)))
            done[first : first + _ROWS] = found.cpu()
        return assembled(done)

    @classmethod
    def saved_names(cls, folder: Path) -> Mapping[str, Sequence[str]]:
        """Return the names of a saved model's classes; see `Trainer.saved_names`."""
        names = Diffusion.load(folder).config.class_names
        return {"classes": names} if names else {}

    def captions(self, n: int, classes: Sequence[int] | None = None) -> list[str]:
        """Return the names of the classes of `pictures`; empty if they have none, or guidance ignores them."""
        return captions(n, () if self.config.sampling.guidance == 0 else self.data.names, classes)

    def export(self, folder: Path) -> None:
        """Write the model, and how to read its output."""
        super().export(folder)
        self.diffusion.save(folder)
