"""The memory that `axon plan` states is what processes keep after an update: weights, gradients, optimiser state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from axon_core.training.build import build_bare_trainer
from axon_core.training.capacity.plan import demand_of, layout_of
from axon_core.training.capacity.tracing import TracedWork
from axon_core.training.recipe import Recipe

WORKER = Path(__file__).with_name("memory_worker.py")
SHARED = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "hybrid": {"strategy": "fsdp", "replicate": 2},
    "tensor": {"strategy": "fsdp", "tensor": 2},
}


def tables(optimizer: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe of a model whose rows divide neither by 2 nor by 4 everywhere."""
    sizes = {"dim": 36, "n_layers": 3, "n_heads": 6, "hidden_dim": 90, "context": 16}
    return {
        "model": {"type": "xllama", **sizes, "attention": {"type": "GQA", "n_kv_heads": 2}},
        "trainer": {
            "type": "causal_lm",
            "batch_size": 4,
            "steps": 1,
            "device": "cpu",
            "optimizer": {"type": optimizer},
            "parallel": parallel,
        },
        "data": {"held_out": 0.001},
    }


def measured(jobs: list[dict[str, Any]], processes: int, folder: Path) -> list[dict[str, int]]:
    """Return, for each job, the most that any process keeps."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, str(WORKER), str(folder / "jobs.json"), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return [{name: max(of[name] for of in job) for name in job[0]} for job in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("processes", "kinds"), [(1, ["ddp"]), (2, ["ddp", "fsdp", "tensor"]), (4, ["fsdp", "hybrid"])]
)
def test_processes_keep_what_was_planned(processes: int, kinds: list[str], tmp_path: Path) -> None:
    jobs = [tables(optimizer, SHARED[kind]) for kind in kinds for optimizer in ("adamw", "muon")]
    for job, found in zip(jobs, measured(jobs, processes, tmp_path), strict=True):
        trainer = build_bare_trainer(Recipe.of(job, "small", "small.toml"))
        planned = demand_of(trainer, processes)[0].memory(layout_of(trainer.config, processes, 8).shard)
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(planned, part) == pytest.approx(found[part], rel=0.02), (part, job["trainer"])


def test_a_rank_computes_its_part_of_divided_layers():
    def work(parallel: dict[str, Any]) -> TracedWork:
        found = demand_of(build_bare_trainer(Recipe.of(tables("adamw", parallel), "small", "small.toml")), 1)[0].work
        assert found is not None
        return found

    whole, part = work(SHARED["fsdp"]), work(SHARED["tensor"])
    features = 4 * 16 * 36  # of all tokens
    vocabulary = (
        build_bare_trainer(Recipe.of(tables("adamw", {}), "small", "small.toml")).models["model"].config.vocab_size
    )
    head = 2 * features * vocabulary
    assert part.forward == pytest.approx(head + (whole.forward - head) / 2, rel=1e-6)
    assert part.results == part.inputs == 3 * 2 * features * 4 and whole.results == 0
    assert whole.activations / 2 < part.activations < whole.activations
