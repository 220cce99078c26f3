"""The interface of trainers: what a paper's training supplies. The loop itself is the core's (`training.loop`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from axon_core import config
from axon_core.config import Count
from axon_core.errors import ContractError
from axon_core.interfaces.model import Model
from axon_core.randomness import Key
from axon_core.text.language_data import SourcePlan
from axon_core.training.devices import AUTO, choose_device, multiplies_bf16
from axon_core.training.optim import AdamW, Optimizer
from axon_core.training.parallel.config import Parallel

if TYPE_CHECKING:
    from axon_core.training.recipe import Recipe

__all__ = ["Trainer"]


class Trainer(ABC):
    """What one paper's training supplies: models, examples, and a loss as sums with their denominators.

    One step of the core's loop is

        data = collect(batch(step), key)
        for minibatch in minibatches(data, key):            # each one update of the weights
            minimise Σ_i sum_i / count_i                    # sums from loss, counts from counts

    The counts are known before the first backward pass, because they depend on the data alone. The sums may thus be
    taken over any number of micro-batches and processes: the update is the same.

    Data are dictionaries of tensors whose first axis counts examples; the core cuts them along it. A column `number` of
    integers says which example of the step each row is, for random numbers such as those of `axon_core.nn.Dropout`;
    without it, that is a row's place.

    Attributes:
        config: the settings of the loop, and what a paper's own `Config` adds.
        models: the modules by role, for instance `{"policy": …, "reference": …}`.
        trainable: the roles that are trained; the others are frozen.
        training_mode: whether the trained models are in training mode, with dropout, while the loss is computed.
        unit: what the first count counts, for the rate in the progress line.
        next_command: what `axon train` proposes at its end.
    """

    class Config(config.Config):
        """What the core's loop needs; a trainer's own `Config` adds its fields."""

        renamed: ClassVar[Mapping[str, str]] = {
            "clip": "max_grad_norm",
            "final": "final_lr_fraction",
            "keep": "keep_checkpoints",
        }

        seed: int = 0
        """What all random numbers of the run derive from."""
        steps: PositiveInt = 1000
        """Number of steps of the loop."""
        batch_size: PositiveInt = 32
        """Examples in a step."""
        micro_batches: Count = 1
        """Pieces into which a mini-batch is cut to save memory; the update does not depend on it."""
        optimizer: Optimizer = Field(default_factory=AdamW)
        """The optimiser by `type`, `adamw` or `muon`, with its learning rates at their peak."""
        schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
        """How the learning rates move after the warm-up."""
        warmup: NonNegativeInt = 0
        """Steps over which the learning rates rise linearly to their peak."""
        final_lr_fraction: NonNegativeFloat = Field(default=0.0, le=1)
        """Where `linear` and `cosine` end, as a fraction of the peak."""
        max_grad_norm: PositiveFloat | None = None
        """The largest norm of the gradients of all parameters: larger ones are scaled to it; left out, no limit."""
        compile: bool = False
        """Compile the loss with `torch.compile`: it starts half a minute later, and a step takes a seventh less."""
        ema: float | None = Field(default=None, gt=0, lt=1)
        """Decay of the exponential moving average of the weights, which is then what is evaluated and exported.

        After n steps it is at most (1 + n) / (10 + n), so that the average soon forgets the first weights."""
        eval_every: PositiveInt | None = None
        """Steps between evaluations; left out, only at the end."""
        save_every: PositiveInt | None = None
        """Steps between checkpoints; left out, only at the end or when interrupted."""
        keep_checkpoints: PositiveInt = 2
        """How many of the latest checkpoints are kept."""
        checkpoint_in_background: bool = False
        """Write checkpoints while training continues: a step waits only until the state is copied in memory."""
        patience: PositiveInt | None = None
        """Stop after this many evaluations in a row without a lower `loss`; left out, never."""
        device: str = Field(default=AUTO, validate_default=True)
        """Where to compute, in PyTorch's terms: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one."""
        precision: Literal["auto", "fp32", "bf16", "fp64"] = "fp32"
        """`bf16` computes matrix products in bfloat16 (autocast); weights and updates stay in float32. `auto` is `bf16`
        where the device has instructions for it, else `fp32`, which is then many times as fast. `fp64` is for tests and
        comparisons: everything is computed in float64, and so are the weights in checkpoints and exports."""

        parallel: Parallel = Field(default_factory=Parallel)
        """How the training is divided among processes, if torchrun started several."""
        log: tuple[Literal["tensorboard", "wandb"], ...] = ()
        """Where the numbers go besides the metrics file: `tensorboard`, `wandb`; each needs the extra of its name."""

        @property
        def dtype(self) -> torch.dtype | None:
            """The dtype of weights and of real numbers in the data, float64; None where they keep their own."""
            return torch.float64 if self.precision == "fp64" else None

        @field_validator("device")
        @classmethod
        def _computes(cls, device: str) -> str:
            return choose_device(device)

        @field_validator("precision")
        @classmethod
        def _suits(cls, precision: str, info: ValidationInfo) -> str:
            if precision == AUTO and "device" in info.data:
                return "bf16" if multiplies_bf16(info.data["device"]) else "fp32"
            return precision

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.micro_batches > self.batch_size:
                raise ValueError(
                    f"micro_batches must be at most batch_size, got {self.micro_batches} > {self.batch_size}"
                )
            if self.schedule == "inverse_sqrt" and not self.warmup:
                raise ValueError("schedule 'inverse_sqrt' needs warmup: it peaks at the end of the warm-up")
            return self

    class Evaluation(config.Config):
        """What a trained model can be measured on; its fields are options of `axon evaluate`. By default, nothing.

        A field that is left out and has the name of a setting in the trainer's `Config` takes the run's value.
        """

        def evaluate(self, folder: Path, device: str) -> Mapping[str, float | str]:
            """Return what the model that `export` wrote into `folder` achieves on these data, and how it was measured.

            It computes on `device`. The data that the run was trained on may be absent.
            """
            return {}

    unit: ClassVar[str] = "examples"
    next_command: ClassVar[str | None] = None
    """The command to continue with after training, such as `axon sample {run}`; `{run}` stands for the run's folder.
    Left out, a language model generates, and any other model is evaluated."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Recipes the conformance kit builds it from, as small as can be; one variant each."""
    trainable: tuple[str, ...]
    training_mode: ClassVar[bool] = True
    """Whether the trained models are in training mode, with dropout, while the loss is computed.

    False keeps them in evaluation mode, for a loss that compares probabilities with earlier ones."""

    collects_ahead: ClassVar[bool] = False
    """Whether `collect` needs no models, as one that only draws noise: then it runs on the CPU, together with `batch`,
    while the device still computes the previous step."""

    def __init__(self, config: Config, models: Mapping[str, nn.Module]) -> None:
        self.config = config
        self.models = models

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Raise a `ConfigError` if a table breaks a rule, or an `UnknownKey`, as far as that is known without files.

        This checks a training that is to start hours later. By default it checks the table `trainer`.
        """
        with config.at("trainer"):
            config.validate(cls.Config, recipe.trainer.options)

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build data, models and trainer from a recipe.

        `saved` is a folder that `export` wrote for the same recipe: what was fitted to the data then, such as a
        tokenizer, is taken from there.

        Raises:
            ConfigError: a table of the recipe breaks a rule.
            DataError: the data cannot be used.
        """

    @abstractmethod
    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the examples of a step, over all processes: a pure function of `step`, so that a run may resume."""

    def sources(self) -> Sequence[SourcePlan]:
        """Return what the data consist of, and how often the whole training goes through each part.

        `axon train --dry-run` shows it. By default it is not known.
        """
        return ()

    def data_digest(self) -> str:
        """Return a checksum of all data for training and evaluation: a run continues only with the same data.

        It depends on nothing that may change when a run is resumed, such as seed or batch size. By default it is the
        `digest` of the attribute `data`; without that, it is empty, and only the first batch is compared.
        """
        return str(getattr(getattr(self, "data", None), "digest", ""))

    def before_step(self, step: int) -> None:  # noqa: B027  (by default there is nothing to do)
        """Do what a step needs before its examples are collected, such as an estimate from held-out data.

        All processes call it alike. What uses the models goes through `axon_core.training.run_evaluation`. What it
        changes belongs to `state_dict`. By default it does nothing.
        """

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Return what the step learns from: roll-outs, noise, everything drawn before the loss. By default the batch.

        Runs without gradients, in evaluation mode. `key` belongs to the step. What needs no models may be collected
        ahead (`collects_ahead`).
        """
        return batch

    def minibatches(self, data: dict[str, Tensor], key: Key) -> Iterable[dict[str, Tensor]]:
        """Cut the collected data into mini-batches, in the order of their updates; by default one."""
        return [data]

    @abstractmethod
    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float | Tensor]:
        """Return the denominator of each term of the loss: a sum over the examples in `data`, and of them alone.

        A count that is computed from the data stays a tensor without axes, so that nothing waits for the device.
        """

    @abstractmethod
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of the loss as *sums* over the examples, under the names that `counts` uses.

        A term without gradient is a metric: it is divided and reported likewise, but not minimised.
        """

    def evaluate(self) -> dict[str, float]:
        """Return means over the *whole* held-out part; `loss` is the one to lower. By default, nothing.

        Runs without gradients, in evaluation mode.
        """
        return {}

    def evaluation_facts(self) -> Mapping[str, str]:
        """Return in words how `evaluate` measures, to stand beside its numbers in `run.json`; by default nothing."""
        return {}

    @classmethod
    def saved_names(cls, folder: Path) -> Mapping[str, Sequence[str]]:
        """Return what the numbers of the model that `export` wrote into `folder` stand for, by kind, in their order.

        For example `{"classes": ("cats", "dogs")}`; `axon info` shows it. By default nothing has names.
        """
        return {}

    def sample(self) -> str | None:
        """Return something a reader can judge the training by, for instance a generated text."""
        return None

    def export(self, folder: Path) -> None:
        """Write what a user takes away into the folder: the model and what it needs.

        By default it is the first of the `trainable` models, with the tokenizer of the attribute `data` if it has one.
        All processes call it, each with a folder of its own; what the first writes is kept. Models are saved by
        `Model.save`, whose weights may be in the folder only after this has returned.

        Raises:
            ContractError: that is not a `Model`, so that it cannot be saved.
            CheckpointError: the folder cannot be written to.
        """
        model = self.models[self.trainable[0]]
        if not isinstance(model, Model):
            raise ContractError(
                f"a {type(model).__name__} cannot be saved, only a Model; let {type(self).__name__} define `export`"
            )
        model.save(folder, getattr(getattr(self, "data", None), "tokenizer", None))

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's own state, an adaptive coefficient for instance: tensors, numbers and strings, nested.

        Models, optimiser and random numbers are the core's.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (by default there is nothing to take)
        """Take over the state that `state_dict` returned."""
