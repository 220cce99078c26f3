"""What `axon plan` says of memory beside what processes keep: `python benchmarks/plan.py PROCESSES LAYOUT`, on CPUs.

LAYOUT is `ddp`, `fsdp` or `hybrid`, two copies. The model is the 125M shape. One step is trained with AdamW and with
Muon, of one iteration, on which memory does not depend; a row is the process that keeps most.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.shapes import SHAPES

from axon_core import MODELS, TRAINERS, Recipe
from axon_core.checkpoint import weightless
from axon_core.training.build import build_bare_trainer
from axon_core.training.capacity.plan import demand_of, layout_of

WORKER = Path(__file__).parents[1] / "tests" / "memory_worker.py"
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "hybrid": {"strategy": "fsdp", "replicate": 2},
}
OPTIMIZERS = {"adamw": {"type": "adamw"}, "muon": {"type": "muon", "iterations": 1}}
KINDS = ("weights", "gradients", "optimizer")


def tables(optimizer: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a step of the 125M shape."""
    shape = SHAPES["125m"]
    return {
        "shape": {
            **{name: getattr(shape, name) for name in ("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size")},
            "context": 16,
            "attention": {"type": "GQA", "n_kv_heads": shape.n_kv_heads},
        },
        "model": {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 16},
        "trainer": {
            **{"type": "causal_lm", "batch_size": 4, "steps": 1, "device": "cpu"},
            **{"optimizer": OPTIMIZERS[optimizer], "parallel": parallel},
        },
        "data": {"held_out": 0.001},
    }


def planned(job: dict[str, Any], processes: int) -> dict[str, int]:
    """Return what the plan says of a job."""
    recipe = Recipe.of({name: table for name, table in job.items() if name != "shape"}, "125m", "125m.toml")
    small = build_bare_trainer(recipe)
    with weightless():
        model = MODELS.build({"type": "xllama", **job["shape"]})
    trainer = TRAINERS["causal_lm"](small.config, {"model": model}, small.data)
    memory = demand_of(trainer, processes)[0].memory(layout_of(trainer.config, processes, 8).shard)
    return {name: getattr(memory, name) for name in KINDS}


def measured(jobs: list[dict[str, Any]], processes: int) -> list[dict[str, int]]:
    """Return what the process that keeps most keeps, for each job."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "jobs.json")
        path.write_text(json.dumps(jobs))
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(start if processes > 1 else []), str(WORKER), str(path), folder]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=900)
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
    return [max(job, key=lambda of: sum(of.values())) for job in zip(*ranks, strict=True)]


def main(processes: int, layout: str) -> None:
    """Print rows of a table in Markdown: planned and measured, in MB."""
    jobs = [tables(optimizer, LAYOUTS[layout]) for optimizer in OPTIMIZERS]
    for optimizer, job, found in zip(OPTIMIZERS, jobs, measured(jobs, processes), strict=True):
        said = planned(job, processes)
        cells = [f"{said[name] / 1e6:,.1f}, {found[name] / 1e6:,.1f}" for name in KINDS]
        ratio = sum(said.values()) / sum(found.values())
        total = f"{sum(said.values()) / 1e6:,.1f}, {sum(found.values()) / 1e6:,.1f}"
        print(f"| {processes} | {layout} | {optimizer} | {' | '.join(cells)} | {total} | {ratio:.4f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
