"""Training on several processes makes the updates of a single one, whatever the strategy.

Processes are started once for each pair of strategy and number, and train everything in turn: the start of Python and
torch takes longer than the trainings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from axon_core import TRAINERS

WORKER = Path(__file__).with_name("parallel_worker.py")
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
DIVISIONS = [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4), ("hsdp", 4)]
PARALLEL = {"hsdp": {"strategy": "fsdp", "replicate": 2, "activation_checkpointing": True}}
# Unequal shares, micro-batches that some processes have no example for, and everything that is computed from all.
OPTIONS = {"batch_size": 5, "micro_batches": 2, "max_grad_norm": 0.5, "ema": 0.9}
MUON = {"optimizer": {"type": "muon"}}


def jobs(precision: str, steps: int, parallel: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return a job for each example of each trainer; the odd ones with Muon."""
    found = []
    examples = [(key, example) for key in sorted(TRAINERS) for example in TRAINERS[key].examples]
    for number, (_, example) in enumerate(examples):
        options = {**OPTIONS, **(MUON if number % 2 else {}), "precision": precision, "steps": steps, "device": "cpu"}
        if example["trainer"].get("minibatches"):
            options["batch_size"] = 6
        if example["trainer"]["type"] == "translation":
            options["batch_size"] = example["trainer"]["batch_size"]
        tables = {**example, "trainer": {**example["trainer"], **options}}
        if parallel:
            tables["trainer"]["parallel"] = parallel
        found.append({"tables": tables})
    return found


NAMES = [f"{key}-{number}" for key in sorted(TRAINERS) for number in range(len(TRAINERS[key].examples))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Return what each division of the work made of each example."""

    @cache
    def run(strategy: str, processes: int, precision: str = "fp64", steps: int = 10) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(f"{strategy}-{processes}")
        parallel = PARALLEL.get(strategy, {"strategy": strategy})
        made = jobs(precision, steps, parallel if processes > 1 else None)
        (folder / "jobs.json").write_text(json.dumps(made))
        start = [*LAUNCH, str(processes)] if processes > 1 else []
        command = [sys.executable, *start, str(WORKER), str(folder / "jobs.json"), str(folder)]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [torch.load(folder / f"{number}.pt") for number in range(len(made))]

    return run


@pytest.mark.parametrize(("strategy", "processes"), DIVISIONS)
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_the_weights_after_ten_steps_are_those_of_one_process(strategy: str, processes: int, number: int, trained):
    one, several = trained("ddp", 1)[number], trained(strategy, processes)[number]
    assert one["parameters"].keys() == several["parameters"].keys()
    for name, expected in one["parameters"].items():
        assert expected.dtype == torch.float64
        torch.testing.assert_close(several["parameters"][name], expected, rtol=1e-12, atol=1e-12, msg=name)
    assert several["metrics"] == pytest.approx(one["metrics"], rel=1e-12)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_the_first_gradients_are_those_of_one_process_in_float32_too(number: int, trained):
    one, several = trained("ddp", 1, "fp32", 1)[number], trained("fsdp", 2, "fp32", 1)[number]
    assert one["gradients"].keys() == several["gradients"].keys() and one["gradients"]
    size = sum(gradient.square().sum() for gradient in one["gradients"].values()).sqrt()
    for name, expected in one["gradients"].items():
        assert (several["gradients"][name] - expected).norm() <= 1e-5 * size, name
