"""How the loss and its gradients are computed: what a training asks of it, and the way of a single process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor

from axon_core.generation.compile import compiled_loss
from axon_core.nn.auxiliary_loss import auxiliary_losses
from axon_core.training.trainer import Trainer

__all__ = ["AUXILIARY", "Strategy"]

T = TypeVar("T")
AUXILIARY = "auxiliary_"
"""What the names of losses begin with that parts of a model add."""
Loss = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


class Strategy:
    """One process: the models as they are.

    Args:
        trainer: what is trained.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._computed: Loss = compiled_loss(trainer.loss) if trainer.config.compile else trainer.loss

    def place(self) -> None:
        """Move the models to the trainer's device, and to float64 if it computes in that."""
        for model in self._trainer.models.values():
            model.to(self._trainer.config.device, self._trainer.config.dtype)

    def begin(self, data: dict[str, Tensor]) -> None:
        """Get ready for an update, whose loss is like that of these examples."""

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the trainer's loss of this process's examples, and what parts of the models add to it.

        The latter have names that begin with `auxiliary_` (`add_auxiliary_loss`).
        """
        return self._loss(data)

    def _loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        with auxiliary_losses() as found:
            terms = self._computed(data)
        return {**terms, **{f"{AUXILIARY}{name}": total for name, total in found.items()}} if found else terms

    def accumulating(self) -> AbstractContextManager[object]:
        """Within the block, gradients need not be summed over processes yet: more micro-batches follow.

        Where they are sharded they are summed all the same, because each process would keep all of them otherwise.
        """
        return nullcontext()

    def whole(self, do: Callable[[], T]) -> T:
        """Return `do()`, which may use the models in any way: all their weights are there."""
        return do()

    def as_workers(self) -> AbstractContextManager[object]:
        """Within the block, examples are divided among the processes as the strategy needs it."""
        return nullcontext()
