"""Updates of the weights; what they computed stays on the device until all of a step are fetched at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from axon_core.errors import ContractError
from axon_core.nn.dropout import dropout_rows
from axon_core.processes import sum_numbers, sum_tensors, workers
from axon_core.randomness import Key
from axon_core.training.devices import works_apart
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.examples import Share, size
from axon_core.training.parallel.strategies import clip_gradients
from axon_core.training.parallel.strategy import AUXILIARY, Strategy
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer

__all__ = ["Update", "UpdateNumbers", "Updater", "autocast", "fetch", "per"]

_EXAMPLES = "examples of the update"


@dataclass(frozen=True)
class Update:
    """One update of the weights.

    Attributes:
        sums: each term of the loss, summed over this process's examples.
        counts: their denominators, over all processes.
        minimised: the terms with a gradient.
        grad_norm: the norm of the gradients, if they are clipped.
    """

    sums: Mapping[str, Tensor]
    counts: Mapping[str, float | Tensor]
    minimised: tuple[str, ...]
    grad_norm: Float[Tensor, ""] | None

    @property
    def numbers(self) -> dict[str, Tensor]:
        """What is still on the device."""
        found = {f"sum {name}": total for name, total in self.sums.items()}
        found |= {f"count {name}": count for name, count in self.counts.items() if isinstance(count, Tensor)}
        return found if self.grad_norm is None else {**found, "grad_norm": self.grad_norm}


@dataclass(frozen=True)
class UpdateNumbers:
    """The numbers of an update.

    Attributes:
        metrics: the mean of each term over all processes, `loss`, and `grad_norm` if the gradients are clipped.
        units: how many examples the first term counts.
    """

    metrics: dict[str, float]
    units: float


def per(total: Float[Tensor, ""], count: float | Real[Tensor, ""]) -> Float[Tensor, ""]:
    """Return `total / count`; a count of 0 belongs to a sum of 0, as no example contributes to that term."""
    return total / (torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1.0)


def fetch(updates: Sequence[Update]) -> list[UpdateNumbers]:
    """Return the numbers of the updates; this waits for the device, once for all of them."""
    device = next(iter(updates[0].sums.values())).device
    fetched = iter(torch.stack([x.to(device) for update in updates for x in update.numbers.values()]).tolist())
    rows = [dict(zip(update.numbers, fetched, strict=False)) for update in updates]
    mine = {f"{i} {name}": row[f"sum {name}"] for i, row in enumerate(rows) for name in updates[i].sums}
    totals = sum_numbers(mine)
    measured: list[UpdateNumbers] = []
    for i, (update, row) in enumerate(zip(updates, rows, strict=True)):
        counts = {name: row.get(f"count {name}", count) for name, count in update.counts.items()}
        metrics = {name: totals[f"{i} {name}"] / (float(counts[name]) or 1.0) for name in update.sums}
        metrics["loss"] = sum(metrics[name] for name in update.minimised)
        if update.grad_norm is not None:
            metrics["grad_norm"] = row["grad_norm"]
        measured.append(UpdateNumbers(metrics, float(next(iter(counts.values())))))
    return measured


class Updater:
    """Makes the updates of a training.

    Args:
        trainer: whose loss is minimised.
        state: what is updated.
        strategy: how the models are divided among processes.
        check: raises if the numbers of an update are not finite.
    """

    def __init__(
        self, trainer: Trainer, state: TrainState, strategy: Strategy, check: Callable[[Mapping[str, float]], None]
    ) -> None:
        self._trainer, self._state, self._strategy, self._check = trainer, state, strategy, check

    def update(self, given: Share, key: Key, factor: float) -> Update:
        """Make one update from a mini-batch: minimise Σ sum_i / count_i, whatever the micro-batches and processes.

        Args:
            given: this process's part of the mini-batch.
            key: for what is drawn while the loss is computed.
            factor: the fraction of the peak learning rates.

        Raises:
            ContractError: the trainer's losses and counts have different names, or no loss has a gradient.
            TrainingError: the loss, or the norm of the gradients, is not finite.
        """
        if isinstance(self._trainer, DirectTrainer):
            return self._direct(self._trainer, given, key)
        config, data, spare = self._trainer.config, given.rows, given.spare
        mine = {**self._trainer.counts(data), _EXAMPLES: float(size(data))}
        counts = dict(_summed(mine))
        examples = counts.pop(_EXAMPLES)
        sums: dict[str, Tensor] = {}
        minimised: dict[str, None] = {}
        pieces = list(_cut(data, config.micro_batches))
        with autocast(config):
            self._strategy.begin(spare)
        first = given.first
        for number, micro in enumerate(pieces):
            key(number).seed_global()
            with nullcontext() if number == len(pieces) - 1 else self._strategy.accumulating():
                with dropout_rows(key, _numbers(micro if size(micro) else spare, first)):
                    terms = self._terms(micro, spare)
                counts |= {name: examples for name in terms if name.startswith(AUXILIARY)}
                first += size(micro)
                losses = self._losses(terms, counts)
                sum(losses.values(), torch.zeros(())).backward()
            minimised |= dict.fromkeys(losses)
            for name, term in terms.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        parameters = list(self._state.parameters.values())
        norm = None
        if config.max_grad_norm is not None:
            norm = clip_gradients(parameters, config.max_grad_norm)
        update = Update(sums, counts, tuple(minimised), norm)
        if not works_apart(config.device):  # to look costs nothing, and the weights stay as they were
            self._check(fetch([update])[0].metrics)
        self._state.update(factor)
        return update

    def _direct(self, trainer: DirectTrainer, given: Share, key: Key) -> Update:
        """Let the trainer make its own update."""
        counts = trainer.counts(given.rows)
        with torch.no_grad(), autocast(trainer.config):
            sums = trainer.update(given.rows, key)
        self._check_names(sums, counts)
        update = Update(sums, counts, tuple(name for name in sums if name == "loss"), None)
        self._check(fetch([update])[0].metrics)
        return update

    def _terms(self, micro: dict[str, Tensor], spare: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of the loss; a spare example counts as nothing."""
        with autocast(self._trainer.config):
            if size(micro) or workers() == 1:
                return self._strategy.loss(micro)
            return {name: term * 0 for name, term in self._strategy.loss(spare).items()}

    def _losses(self, terms: Mapping[str, Tensor], counts: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
        """Return what is minimised. Raises `ContractError` if the trainer's terms are not as agreed."""
        self._check_names(terms, counts)
        losses = {name: per(term, counts[name]) for name, term in terms.items() if term.requires_grad}
        if not losses:
            raise ContractError(f"no term of {type(self._trainer).__name__}.loss has a gradient")
        return losses

    def _check_names(self, terms: Mapping[str, Tensor], counts: Mapping[str, float | Tensor]) -> None:
        if terms.keys() != counts.keys():
            method = "update" if isinstance(self._trainer, DirectTrainer) else "loss"
            raise ContractError(
                f"{type(self._trainer).__name__}.{method} and .counts must name the same terms, got {sorted(terms)} "
                f"and {sorted(counts)}"
            )


def autocast(config: Trainer.Config) -> torch.autocast:
    """Return the context in which a trainer's models compute, as its `precision` says."""
    kind = torch.device(config.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16")


def _summed(counts: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Return each count summed over all workers; with a single one nothing waits for the device."""
    if workers() == 1:
        return counts
    tensors = [count for count in counts.values() if isinstance(count, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    return dict(zip(counts, sum_tensors([torch.as_tensor(c, device=device) for c in counts.values()]), strict=True))


def _numbers(data: Mapping[str, Tensor], first: int) -> Int[Tensor, " b"]:
    """Return the numbers of the examples: the column `number`, or else their places, counted from `first`."""
    given, column = data.get("number"), next(iter(data.values()))
    if given is not None and given.dtype == torch.long and given.ndim == 1:
        return given
    return torch.arange(first, first + len(column), device=column.device)


def _cut(data: dict[str, Tensor], pieces: int) -> Generator[dict[str, Tensor]]:
    """Yield near-equal pieces of `data`: as many in each of several workers; in a single one none is empty."""
    if pieces == 1:
        yield data
        return
    pieces = pieces if workers() > 1 else min(pieces, size(data))
    for piece in zip(*(rows.tensor_split(pieces) for rows in data.values()), strict=True):
        yield dict(zip(data, piece, strict=True))
