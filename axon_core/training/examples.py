"""What one worker has of a step: its share of the batch, and what the trainer collects from it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from axon_core.processes import borrowed, share, together, worker, workers
from axon_core.randomness import Key
from axon_core.training.devices import to_device, works_apart
from axon_core.training.parallel.strategy import Strategy
from axon_core.training.trainer import Trainer

__all__ = ["Examples", "Share", "resting", "size"]


@dataclass(frozen=True)
class Share:
    """What one worker has of a step: a process, or several that compute each example together.

    Attributes:
        rows: its examples, perhaps none.
        spare: one example, its own or borrowed from another worker, for where it has none: the models must run here
            all the same, because the other processes wait for this one's part of weights and gradients.
        first: the number of the first of them among those of all workers.
    """

    rows: dict[str, Tensor]
    spare: dict[str, Tensor]
    first: int

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Share:
        """Return this worker's share of a batch of all workers."""
        mine = share(batch)
        lender = mine if size(mine) else batch
        each, more = divmod(size(batch), workers())
        first = worker() * each + min(worker(), more)
        return cls(mine, {name: rows[:1] for name, rows in lender.items()}, first)

    def to(self, device: str, dtype: torch.dtype | None) -> Share:
        """Return it on a device, real numbers in `dtype`."""
        rows, spare = (
            {name: to_device(rows, device, dtype) for name, rows in part.items()} for part in (self.rows, self.spare)
        )
        return Share(rows, spare, self.first)


class Examples:
    """The examples of each step, in this process.

    Args:
        trainer: whose `batch` and `collect` make them.
        strategy: how its models are divided among processes.
        end: the step before which there are any.
    """

    def __init__(self, trainer: Trainer, strategy: Strategy, end: int) -> None:
        self._trainer, self._strategy, self._end = trainer, strategy, end
        self._collects = type(trainer).collect is not Trainer.collect
        self._ahead: Share | None = None  # those of the next step, if they are built

    def build(self, step: int) -> Share:
        """Return those of a step, on the device, as far as they need no models.

        Raises:
            PeerError: another process could not build its own.
        """
        built, self._ahead = self._ahead, None
        return together(lambda: built or self._built(step))

    def build_ahead(self, step: int) -> None:
        """Build those of the next step while the device still works on the updates of this one."""
        if step < self._end and works_apart(self._trainer.config.device):
            with suppress(Exception):  # they are asked for again in their own step, where the error belongs
                self._ahead = self._built(step)

    def _built(self, step: int) -> Share:
        given = Share.of(self._trainer.batch(step))
        if self._trainer.collects_ahead:
            given = self._collected(given, step)
        return given.to(self._trainer.config.device, self._trainer.config.dtype)

    def collect(self, given: Share, step: int) -> Share:
        """Return what the step learns from, where that needs the models."""
        return given if self._trainer.collects_ahead else self._collected(given, step)

    def _collected(self, given: Share, step: int) -> Share:
        trainer = self._trainer
        if not self._collects:
            return given
        key, empty = Key((trainer.config.seed, step, "collect")), not size(given.rows)
        rows = given.spare if empty else given.rows
        with resting(trainer), borrowed(empty):
            key.seed_global()
            if trainer.collects_ahead:
                found = trainer.collect(rows, key)
            else:
                found = self._strategy.whole(lambda: trainer.collect(rows, key))
        spare = {name: column[:1] for name, column in found.items()}
        return Share({name: column[:0] for name, column in found.items()} if empty else found, spare, given.first)


def size(data: Mapping[str, Tensor]) -> int:
    """Return the number of examples."""
    return len(next(iter(data.values())))


@contextmanager
def resting(trainer: Trainer) -> Generator[None]:
    """Within the block all models are in evaluation mode, and no gradients are kept."""
    training = [model for model in trainer.models.values() if model.training]
    for model in training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model in training:
            model.train()
