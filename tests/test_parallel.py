"""Training on several processes makes the updates of a single one, whatever the strategy.

Processes are started once for each pair of strategy and number, and train everything in turn: the start of Python and
torch takes longer than the trainings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_work import shared_folder
from torch import nn

from axon_core import TRAINERS, Recipe, build_trainer, fit
from axon_core.cli import main
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.parallel.units import sharding_units

WORKER = Path(__file__).with_name("parallel_worker.py")
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
DIVISIONS = [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4), ("hsdp", 4)]
PARALLEL = {"hsdp": {"strategy": "fsdp", "replicate": 2, "activation_checkpointing": True, "cpu_offload": True}}
# Unequal shares, micro-batches that some processes have no example for, and everything that is computed from all.
OPTIONS = {"batch_size": 5, "micro_batches": 2, "max_grad_norm": 0.5, "ema": 0.9, "device": "cpu"}
BY_GRADIENTS = [key for key in sorted(TRAINERS) if not issubclass(TRAINERS[key], DirectTrainer)]
EXAMPLES = [(f"{key}-{n}", example) for key in BY_GRADIENTS for n, example in enumerate(TRAINERS[key].examples)]
THIRD = "third-party"
"""A model and a trainer that nobody adapted."""

ALL = os.environ.get("AXON_PARALLEL") == "all"
"""Whether every division trains every example, which takes a quarter of an hour on two cores."""


def chosen(strategy: str, processes: int, name: str) -> bool:
    """Whether a division trains an example: two processes train one of each trainer, four a few."""
    if ALL or name == THIRD or processes == 1:
        return True
    return name in ("causal_lm-0", "dpo-0") if processes == 4 else name.endswith("-0")


CASES = [
    pytest.param(strategy, processes, name, id=f"{strategy}-{processes}-{name}")
    for strategy, processes in DIVISIONS
    for name in [*(name for name, _ in EXAMPLES), THIRD]
    if (ALL or (strategy, processes) not in (("ddp", 4), ("fsdp", 4))) and chosen(strategy, processes, name)
]


def job(number: int, example: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return what a worker trains; the odd ones with Muon."""
    given = {**example["trainer"], **OPTIONS, **options}
    if number % 2:
        given["optimizer"] = {"type": "muon"}
    if given.get("minibatches"):
        given["batch_size"] = 6  # a multiple of them
    if given["type"] == "translation":
        given["batch_size"] = example["trainer"]["batch_size"]  # tokens
    return {"tables": {**example, "trainer": given}}


def install(folder: Path) -> None:
    """Make and install what `axon new` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in ("model", "trainer"):
            assert main(["new", f"third-{kind}", "--kind", kind]) == 0
    pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    projects = [str(folder / f"axon-third-{kind}") for kind in ("model", "trainer")]
    command = [sys.executable, *pip, "--no-build-isolation", "--target", str(folder / "site"), *projects]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install a model and a trainer as `axon new` makes them, for the processes that are started."""
    folder = shared_folder(tmp_path_factory, "third-parties", install)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")]))
        yield


def run(folder: Path, processes: int, jobs: Mapping[str, Any]) -> None:
    """Let so many processes do the jobs, and write what they return into the folder."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    start = [*LAUNCH, str(processes)] if processes > 1 else []
    command = [sys.executable, *start, str(WORKER), str(folder / "jobs.json"), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]


def parallel(strategy: str, processes: int) -> dict[str, Any]:
    return PARALLEL.get(strategy, {"strategy": strategy}) if processes > 1 else {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Return the function that returns what a division of the work made of an example."""

    @cache
    def folder(strategy: str, processes: int, precision: str, steps: int) -> Path:
        options = {"precision": precision, "steps": steps, "parallel": parallel(strategy, processes)}
        jobs = {
            name: job(number, example, **options)
            for number, (name, example) in enumerate(EXAMPLES)
            if chosen("ddp", 2, name) and chosen(strategy, processes, name)
        }
        model = {"type": "third_model", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 8}
        jobs[THIRD] = {"trainer": "third_trainer", "model": model, "options": {**OPTIONS, **options}}
        name = f"{strategy}-{processes}-{precision}"
        return shared_folder(tmp_path_factory, name, lambda folder: run(folder, processes, jobs))

    def made(name: str, strategy: str, processes: int, precision: str = "fp64", steps: int = 10) -> dict[str, Any]:
        return torch.load(folder(strategy, processes, precision, steps) / f"{name}.pt")

    return made


@pytest.mark.parametrize(("strategy", "processes", "name"), CASES)
def test_the_weights_after_ten_steps_are_those_of_one_process(strategy: str, processes: int, name: str, trained):
    one, several = trained(name, "ddp", 1), trained(name, strategy, processes)
    assert one["parameters"].keys() == several["parameters"].keys()
    for parameter, expected in one["parameters"].items():
        assert expected.dtype == torch.float64
        torch.testing.assert_close(several["parameters"][parameter], expected, rtol=1e-12, atol=1e-12, msg=parameter)
    assert several["metrics"] == pytest.approx(one["metrics"], rel=1e-12)


@pytest.mark.parametrize("name", [*(name for name, _ in EXAMPLES if chosen("fsdp", 2, name)), THIRD])
def test_the_first_gradients_are_those_of_one_process_in_float32_too(name: str, trained):
    one, several = trained(name, "ddp", 1, "fp32", 1), trained(name, "fsdp", 2, "fp32", 1)
    assert one["gradients"].keys() == several["gradients"].keys() and one["gradients"]
    size = sum(gradient.square().sum() for gradient in one["gradients"].values()).sqrt()
    for parameter, expected in one["gradients"].items():
        assert (several["gradients"][parameter] - expected).norm() <= 1e-5 * size, parameter


RESUMED = ("causal_lm-0", "ppo-1", "translation-0")
"""With a moving average, Muon, an adaptive coefficient, roll-outs, and dropout."""


def going(folder: Path, way: str, strategy: str, processes: int, stop_at: int, steps: int = 8) -> dict[str, Any]:
    """Return the jobs that train the examples in folders of their own up to a step, by names that begin with `way`."""
    options = {"precision": "fp64", "steps": steps, "parallel": parallel(strategy, processes)}
    return {
        f"{way} {name}": {**job(1, example, **options), "out": str(folder / f"{way} {name}"), "stop_at": stop_at}
        for name, example in EXAMPLES
        if name in RESUMED
    }


@pytest.mark.skipif(not ALL, reason="AXON_PARALLEL=all runs it; test_sharded_checkpoints.py has a shorter one")
def test_a_training_is_continued_by_any_number_of_processes(tmp_path: Path):
    run(tmp_path, 1, going(tmp_path, "one", "ddp", 1, 8))
    for strategy, processes, stop_at in (("ddp", 2, 2), ("ddp", 1, 4), ("fsdp", 4, 6), ("fsdp", 2, 8)):
        run(tmp_path, processes, going(tmp_path, "changed", strategy, processes, stop_at))
    for name in RESUMED:
        expected, found = (torch.load(tmp_path / f"{way} {name}.pt") for way in ("one", "changed"))
        for parameter, values in expected["parameters"].items():
            torch.testing.assert_close(found["parameters"][parameter], values, rtol=1e-12, atol=1e-12)
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-12)


def test_as_many_processes_continue_bit_for_bit(tmp_path: Path):
    run(tmp_path, 2, going(tmp_path, "straight", "fsdp", 2, 5, 5) | going(tmp_path, "resumed", "fsdp", 2, 2, 5))
    run(tmp_path, 2, going(tmp_path, "resumed", "fsdp", 2, 5, 5))
    for name in RESUMED:
        straight, again = (torch.load(tmp_path / f"{way} {name}.pt") for way in ("straight", "resumed"))
        for parameter, values in straight["parameters"].items():
            assert torch.equal(again["parameters"][parameter], values), (name, parameter)
        assert again["metrics"] == straight["metrics"]


def test_models_are_prepared_once():
    example = TRAINERS["causal_lm"].examples[0]
    given = {**example["trainer"], "steps": 2, "parallel": {"activation_checkpointing": True}}
    trainer = build_trainer(Recipe.of({**example, "trainer": given}, "example", "an example"))
    fit(trainer, stop_at=1, progress=False)
    (unit,) = sharding_units(trainer.models["model"])
    once = unit.forward
    fit(trainer, progress=False)
    assert unit.forward is once


@pytest.mark.parametrize("key", BY_GRADIENTS)
def test_activations_that_are_computed_again_change_no_update(key: str):
    """With them off and on, every trainer makes the same two updates; a layer that keeps something fails here."""
    weights = []
    for again in (False, True):
        tables = job(0, TRAINERS[key].examples[0], precision="fp64", steps=2)["tables"]
        tables["trainer"]["parallel"] = {"activation_checkpointing": again}
        trainer = build_trainer(Recipe.of(tables, "example", "an example"))
        fit(trainer, progress=False)
        weights.append({name: p for role in trainer.trainable for name, p in trainer.models[role].named_parameters()})
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-12, atol=1e-12, msg=name)


def test_a_model_names_its_units_of_sharding():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(2, 2) for name in "ab"})
            self.empty = nn.ModuleList([nn.ReLU(), nn.Linear(2, 2)])

    class Naming(Named):
        def sharding_units(self) -> list[nn.Module]:
            return [*self.layers.values(), self.layers["a"]]

    named, naming = Named(), Naming()
    assert sharding_units(named) == [named.empty[1]]
    assert sharding_units(naming) == [*naming.layers.values()]
