"""What the processes of `test_tensor` do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from axon_core import Recipe, build_trainer, fit
from axon_core.checkpoint.pieces import whole
from axon_core.processes import as_workers, assembled, borrowed, own, restored, share, sum_numbers, sum_tensors


def train(tables: Mapping[str, Any], out: Path | None, stop: int | None) -> dict[str, Any]:
    """Train, and return the weights, the last evaluation and the warnings."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("axon").addHandler(handler)
    trainer = build_trainer(Recipe.of(dict(tables), "example", "an example"))
    result = fit(trainer, out, resume=out is not None, stop_at=stop, progress=False)
    models = {role: trainer.models[role] for role in trainer.trainable}
    weights = {f"{role}.{name}": p for role, model in models.items() for name, p in model.named_parameters()}
    return {
        "weights": {name: whole(parameter).flatten().tolist() for name, parameter in weights.items()},
        "metrics": result.metrics,
        "said": [line for line in said if "tensor" in line],
    }


def count() -> dict[str, Any]:
    """Count seven examples in several processes, of which two in a row are one worker; the last one borrows."""
    with as_workers(2):
        rows = share({"rows": torch.arange(7.0)})["rows"]
        number = own([0, 1, 2])[0]
        with borrowed(number == 1):
            lent = sum_numbers({"sum": 1.0})["sum"]
        filled = torch.zeros(7)
        filled[rows.long()] = rows
        return {
            "rows": rows.tolist(),
            "sums": [sum_numbers({"sum": rows.sum().item()})["sum"], sum_tensors([rows.sum()])[0].item(), lent],
            "restored": restored([item * 10 for item in own([0, 1, 2])]),
            "assembled": assembled(filled).tolist(),
        }
