"""Runs in each of several processes: trains examples of trainers, and writes what the first process has at the end.

`python parallel_worker.py JOBS OUT`: JOBS is a JSON file of `{name: {"tables": …}}`, each with `out`, a run folder to
start or to continue in, and `stop_at`, if it has them. The folder OUT gets `<name>.pt` with all parameters, the first
step's gradients and the last evaluation of each; one of a single step is not evaluated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core import TRAINERS, Recipe, build_trainer, fit
from axon_core.checkpoint.pieces import whole
from axon_core.processes import is_first
from axon_core.training.parallel.group import joined
from axon_core.training.train_state import TrainState

torch.set_num_threads(1)


def tables(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job's recipe; of a trainer that is named alone, its first example, with the model that is named."""
    if "tables" in job:
        return job["tables"]
    example = TRAINERS[job["trainer"]].examples[0]
    return {**example, "model": job["model"], "trainer": {**example["trainer"], **job["options"]}}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train an example; of several processes, all are to call this alike."""
    trainer = build_trainer(Recipe.of(tables(job), "example", "an example"))
    if trainer.config.steps == 1:
        trainer.evaluate = dict  # type: ignore[method-assign]
    gradients: dict[str, Tensor] = {}
    update = TrainState.update

    def watched(state: TrainState, factor: float) -> None:
        if not gradients:
            gradients.update(
                {name: whole(p.grad).clone() for name, p in state.parameters.items() if p.grad is not None}
            )
        update(state, factor)

    TrainState.update = watched  # type: ignore[method-assign]
    try:
        out = job.get("out")
        result = fit(trainer, out, resume=out is not None, stop_at=job.get("stop_at"), progress=False)
    finally:
        TrainState.update = update  # type: ignore[method-assign]
    named = {f"{role}.{n}": p for role in trainer.trainable for n, p in trainer.models[role].named_parameters()}
    return {
        "parameters": {name: whole(p).clone() for name, p in named.items()},
        "gradients": gradients,
        "metrics": result.metrics,
    }


def main(jobs: Path, out: Path) -> None:
    with joined(300):  # other work may slow one of them down
        for name, job in json.loads(jobs.read_text()).items():
            done = train(job)
            if is_first():
                torch.save(done, out / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
