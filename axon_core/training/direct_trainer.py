"""Trainers that change their models themselves, without gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NoReturn

from torch import Tensor

from axon_core.errors import ContractError, UsageError
from axon_core.processes import world
from axon_core.randomness import Key
from axon_core.training.trainer import Trainer

__all__ = ["DirectTrainer"]


class DirectTrainer(Trainer):
    """A trainer whose models are tables, counts and the like: `update` changes them, and no gradient is computed.

    The core saves and restores the buffers of its models, so that a run resumes exactly. The settings of optimisers
    have no effect. It runs in one process.

    Raises:
        UsageError: there are several processes, or a setting is only for updates by gradients.
    """

    training_mode: ClassVar[bool] = False

    def loss(self, data: dict[str, Tensor]) -> NoReturn:
        """Raise a `ContractError`: nothing is minimised."""
        raise ContractError(f"{type(self).__name__} has no loss: `update` changes its models")

    @abstractmethod
    def update(self, data: dict[str, Tensor], key: Key) -> Mapping[str, Tensor]:
        """Change the trained models by a mini-batch, and return *sums* over its examples, named as `counts` does.

        The term `loss`, if there is one, is reported as the loss. `key` is for what is drawn. Runs without gradients,
        in evaluation mode.
        """

    def check_settings(self) -> None:
        """Raise a `UsageError` for settings under which updates would differ from those that `update` makes."""
        if world() > 1:
            raise UsageError(f"{type(self).__name__} computes in one process, got {world()}: start it without torchrun")
        config = self.config
        for name in ("ema", "max_grad_norm", "compile"):
            if (value := getattr(config, name)) not in (None, False):
                raise UsageError(f"trainer.{name} is for updates by gradients, got {value}: leave it out")
        if config.micro_batches > 1:
            raise UsageError(f"trainer.micro_batches must be 1 without gradients, got {config.micro_batches}")
