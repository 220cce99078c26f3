"""What updates of the weights computed, left on the device until all of a step are fetched at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor

from axon_core.processes import sum_numbers

__all__ = ["Update", "UpdateNumbers", "fetch", "per"]


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
