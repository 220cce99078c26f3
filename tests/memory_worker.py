"""Runs in each of several processes: trains one step of each job, and writes what that process keeps in memory.

`python memory_worker.py JOBS OUT`: JOBS is a JSON file with a list of recipes' tables. A table `shape`, beside them,
makes the model an X-Llama of any vocabulary. OUT is a folder, which gets `<rank>.json` with a list of bytes by kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core import MODELS, Recipe, Trainer, build_trainer, fit
from axon_core.processes import local, rank
from axon_core.training import TRAINERS
from axon_core.training.parallel.group import joined
from axon_core.training.train_state import TrainState

torch.set_num_threads(1)


def kept(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages in which a process has its parts of tensors."""
    storages = [local(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def trainer_of(tables: dict[str, Any]) -> Trainer:
    recipe = Recipe.of({name: table for name, table in tables.items() if name != "shape"}, "small", "small.toml")
    trainer = build_trainer(recipe)
    if "shape" not in tables:
        return trainer
    model = MODELS.build({"type": "xllama", **tables["shape"]})
    return TRAINERS["causal_lm"](trainer.config, {"model": model}, trainer.data)


def measure(tables: dict[str, Any]) -> dict[str, int]:
    """Return what is kept: gradients before the first update, and the rest after it."""
    found, update = dict[str, int](), TrainState.update

    def watched(state: TrainState, factor: float) -> None:
        found["gradients"] = kept(p.grad for p in state.parameters.values() if p.grad is not None)
        update(state, factor)
        models = state.trainer.models.values()
        found["weights"] = kept(t for model in models for t in (*model.parameters(), *model.buffers()))
        moments = [value for optimizer in state.optimizers for of in optimizer.state.values() for value in of.values()]
        found["optimizer"] = kept(value for value in moments if isinstance(value, Tensor))

    TrainState.update = watched  # type: ignore[method-assign]
    try:
        fit(trainer_of(tables), progress=False)
    finally:
        TrainState.update = update  # type: ignore[method-assign]
    return found


if __name__ == "__main__":
    with joined(120):
        found = [measure(tables) for tables in json.loads(Path(sys.argv[1]).read_text())]
        Path(sys.argv[2], f"{rank()}.json").write_text(json.dumps(found))
