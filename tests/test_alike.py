"""Scripts that call `fit` in several processes: they begin at the same weights, and what differs is named."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import sharded_workers as workers

from axon_core import AxonError, Trainer, evaluate, fit, joined, rank, validate
from axon_core.checkpoint.pieces import whole

FSDP = {"strategy": "fsdp"}
DIVISIONS = {"ddp": (2, {}), "fsdp": (2, FSDP), "hsdp": (4, {**FSDP, "replicate": 2})}


def made(**options: Any) -> workers.TinyTrainer:
    settings = {"steps": 2, "batch_size": 4, "precision": "fp64", "device": "cpu", **options}
    return workers.TinyTrainer(validate(Trainer.Config, settings))


def draw_and_train(parallel: dict[str, Any]) -> list[float]:
    """Train a model that each process draws by itself, with `ddp` one whose memory is not contiguous everywhere."""
    torch.manual_seed(rank())
    trainer = made(parallel=parallel)
    model = trainer.models["model"]
    if not parallel:
        model.body[0].weight = torch.nn.Parameter(model.body[0].weight.detach().T.contiguous().T)
    model.shift.fill_(rank() / 4)
    fit(trainer, progress=False)
    return torch.cat([whole(tensor).flatten() for tensor in model.state_dict().values()]).tolist()


@pytest.mark.parametrize("division", DIVISIONS)
def test_models_that_processes_draw_by_themselves_become_that_of_the_first(division: str, tmp_path: Path):
    size, parallel = DIVISIONS[division]
    (one,) = workers.run(1, draw_and_train, {}, folder=tmp_path)
    for found in workers.run(size, draw_and_train, parallel, folder=tmp_path):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(one), rtol=1e-12, atol=1e-12)


def train_otherwise(folder: Path, what: str) -> None:
    """Train in two processes that differ in something."""
    trainer, options = made(parallel={"timeout": 20}), {"out": folder / "run"}
    if rank() == 1:
        match what:
            case "a wider model":
                trainer.models["model"] = workers.Tiny(workers.Tiny.Config(width=8))
            case "no folder":
                options = {}
            case _:
                options["stop_at"] = 1
    fit(trainer, progress=False, **options)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("a wider model", "the shapes of the model model of process 0 and process 1"),
        ("no folder", "out, which is a folder in process 0 and none in process 1"),
        ("an earlier end", "stop_at, which is None in process 0 and 1 in process 1"),
    ],
)
def test_calls_that_differ_are_refused_in_all_processes(what: str, told: str, tmp_path: Path):
    message = (
        f"UsageError: the processes of a training must be alike, but they differ in {told}. Give all the same recipe, "
        "arguments, installed versions, models and data"
    )
    assert workers.run(2, train_otherwise, tmp_path, what, folder=tmp_path) == [message] * 2
    assert not (tmp_path / "run").exists()


def train_and_use(number: int, port: int, folder: Path, said: Any) -> None:
    """Be a script that torchrun has started: train three times, and use what is sharded in time and too late."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", **place}
    first, second, third = made(parallel=FSDP), made(parallel=FSDP), made()
    with joined():
        fit(first, progress=False)
        first.models["model"].save(folder / "model")
    fit(second, progress=False)
    fit(third, stop_at=1, progress=False)
    lines = [str(fit(third, progress=False).step)]
    later = folder / f"later-{number}"
    for use in (lambda: second.models["model"].save(later), lambda: evaluate(second), lambda: fit(second)):
        try:
            use()
        except AxonError as error:
            lines.append(str(error))
    said.put(lines)


def test_a_script_trains_several_times_and_uses_what_is_sharded_within_joined(tmp_path: Path):
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "axon_core.training.loop"])
    said = context.Queue()
    processes = [
        context.Process(target=train_and_use, args=(number, store.port, tmp_path, said), daemon=True)
        for number in range(2)
    ]
    for process in processes:
        process.start()
    try:
        found = [said.get(timeout=workers.LIMIT) for _ in processes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for step, *errors in found:
        assert step == "2" and len(errors) == 3
        assert all("train and use the model within one `with axon_core.joined():`" in error for error in errors)
    workers.Tiny.load(tmp_path / "model")
    assert not [*tmp_path.glob("later-*/*.safetensors")]
