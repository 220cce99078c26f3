"""What the processes of `test_sharded_checkpoints` do: a tiny model in any strategy, saved and read."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parent))

from axon_core.checkpoint import saving
from axon_core.checkpoint.checkpoint import Checkpoints
from axon_core.checkpoint.pieces import whole
from axon_core.config import validate
from axon_core.errors import CheckpointError
from axon_core.interfaces.model import Model
from axon_core.processes import PeerError, is_first, local, rank, world
from axon_core.registry import provenance
from axon_core.training.loop import fit
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer

LIMIT = 120.0  # seconds that a group of processes may take


class Tiny(Model):
    """Sizes that no number of processes divides, tied weights, and a number that is not sharded."""

    class Config(Model.Config):
        width: int = 6

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(3, config.width)
        self.body = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(2)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 3, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        return self.head(self.norm(x)) + self.shift


class TinyTrainer(Trainer):
    trainable = ("model",)

    def __init__(self, config: Trainer.Config) -> None:
        super().__init__(config, {"model": Tiny(Tiny.Config())})

    @classmethod
    def from_recipe(cls, recipe, saved=None):
        raise NotImplementedError

    def batch(self, step: int):
        return {"tokens": (torch.arange(16).reshape(4, 4) + step) % 3}

    def counts(self, data):
        return {"loss": data["tokens"].numel()}

    def loss(self, data):
        return {"loss": self.models["model"](data["tokens"]).square().sum()}

    def state_dict(self):
        return {"known": torch.arange(5.0), "name": "tiny"}

    def load_state_dict(self, state):
        assert torch.equal(state["known"], torch.arange(5.0)) and state["name"] == "tiny"


def state_of(kind: str, seed: int, steps: int, trainer_class: type[Trainer] = TinyTrainer) -> TrainState:
    """Return a state after some steps; all processes have the same examples."""
    torch.manual_seed(seed)
    trainer = trainer_class(validate(Trainer.Config, {"ema": 0.5, "optimizer": {"type": "adamw", "lr": 0.1}}))
    if kind != "plain":
        shape = (2, world() // 2) if kind == "hsdp" else (world(),)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        model = trainer.models["model"]
        for layer in model.body:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    state = TrainState(trainer)
    for step in range(steps):
        advance(state, step)
    return state


def advance(state: TrainState, step: int) -> None:
    state.trainer.loss(state.trainer.batch(step))["loss"].backward()
    state.step = step + 1
    state.update(1.0)


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of a tree, tensors whole."""
    if isinstance(node, dict):
        return {key: leaf for k, child in node.items() for key, leaf in flat(child, f"{name}/{k}").items()}
    return {name: whole(node).clone() if isinstance(node, torch.Tensor) else node}


def save(state: TrainState, checkpoints: Checkpoints, **options: Any) -> Path:
    with state.averaged():
        return checkpoints.save(state.step, state.state_dict(), state.trainer.export, **options)


def write(folders: dict[str, Path]) -> None:
    """Save in each strategy, and beside it everything as one process of the safetensors library does."""
    for kind, folder in folders.items():
        _write(kind, folder)


def _write(kind: str, folder: Path) -> None:
    state = state_of(kind, 0, 3)
    tensors = {name: leaf for name, leaf in flat(state.state_dict()).items() if isinstance(leaf, torch.Tensor)}
    save(state, Checkpoints(folder))
    if is_first():
        save_file(tensors, folder / "expected.safetensors")


def read(kinds: list[str], folders: list[Path]) -> None:
    """Read what others wrote into a state of each strategy."""
    for kind, folder in product(kinds, folders):
        state = state_of(kind, 1, 0)
        found = Checkpoints(folder).find()
        assert found is not None
        state.load_state_dict(Checkpoints.read(found))
        expected = load_file(folder / "expected.safetensors")
        leaves = flat(state.state_dict())
        for name, leaf in leaves.items():
            if isinstance(leaf, torch.Tensor):
                assert leaf.dtype == expected[name].dtype and torch.equal(leaf, expected[name]), name
        assert {name for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)} == expected.keys()
        assert state.step == 3
        advance(state, 3)  # the moments are where the optimiser expects them


def find(folder: Path) -> str:
    """Look for a checkpoint that is damaged."""
    Checkpoints(folder).find()
    return "found"


def fill_up(folder: Path, full: int, background: bool) -> str:
    """Save once, then again while one process cannot write; return the message, and whose error it is."""
    state, checkpoints = state_of("fsdp", 0, 1), Checkpoints(folder)
    save(state, checkpoints)
    advance(state, 1)
    if rank() == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    try:
        save(state, checkpoints, background=background)
        checkpoints.wait()
        return "saved"
    except CheckpointError as error:
        return f"own: {error}"
    except PeerError as error:
        return f"peer: {error}"


def meanwhile(kind: str, folder: Path, slow: float) -> str:
    """Save in the background, slowly, while training continues; beside it what the step had."""
    real = saving.write_pieces

    def slowly(*arguments: Any) -> Any:
        time.sleep(slow)
        return real(*arguments)

    saving.write_pieces = slowly
    state, checkpoints = state_of(kind, 0, 3), Checkpoints(folder)
    tensors = {name: leaf for name, leaf in flat(state.state_dict()).items() if isinstance(leaf, torch.Tensor)}
    began = time.monotonic()
    save(state, checkpoints, background=True)
    for step in (3, 4):
        advance(state, step)
    trained = time.monotonic() - began
    assert checkpoints.is_saving and not checkpoints.has_ended(), f"{trained}"
    assert checkpoints.names() == []
    path = checkpoints.wait()
    assert path == folder / "step-3" and checkpoints.names() == ["step-3"] and not checkpoints.is_saving
    if is_first():
        save_file(tensors, folder / "expected.safetensors")
    return ""


def train(folder: Path, options: dict[str, Any], resume: bool, stop: int | None) -> list[float]:
    """Train up to a step with the core's loop; return the weights."""
    torch.manual_seed(0)
    options = {"ema": 0.5, "steps": 8, "batch_size": 4, "save_every": 2, "precision": "fp64", **options}
    trainer = TinyTrainer(validate(Trainer.Config, {"optimizer": {"type": "muon"}, **options}))
    fit(trainer, folder, resume=resume, stop_at=stop, progress=False)
    weights = trainer.models["model"].state_dict().values()
    return torch.cat([whole(tensor).flatten() for tensor in weights]).tolist()


class Shifted(TinyTrainer):
    """Its export changes a number and a vector for its time, and runs the model, as that of a reward model does."""

    def export(self, folder: Path) -> None:
        model = self.models["model"]
        with torch.no_grad():
            before = model.shift.clone()
            model.shift.fill_(4.0)
            model.norm.weight.mul_(2.0)
            model(self.batch(0)["tokens"])
            super().export(folder)
            model.shift.copy_(before)
            model.norm.weight.div_(2.0)


def shift(kind: str, folder: Path, background: bool) -> str:
    state, checkpoints = state_of(kind, 0, 1, Shifted), Checkpoints(folder)
    save(state, checkpoints, background=background)
    checkpoints.wait()
    norm = whole(state.average["model.norm.weight"])
    loaded = Tiny.load(folder / "step-1/model")
    assert loaded.shift == 4.0 and torch.equal(loaded.norm.weight, norm * 2)
    assert torch.equal(loaded.head.weight, whole(state.average["model.embedding.weight"]))
    stored = Checkpoints.read(folder / "step-1")
    assert stored["models"]["model"]["shift"].read() == 0.25
    assert torch.equal(stored["average"]["model.norm.weight"].read(), norm)
    return ""


def save_alone(folder: Path, full: int | None) -> str:
    """Save a sharded model by itself, called by all processes."""
    model = state_of("fsdp", 0, 1).trainer.models["model"]
    if rank() == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    try:
        model.save(folder)
    except (CheckpointError, PeerError) as error:
        return str(error)
    loaded = Tiny.load(folder)
    assert all(torch.equal(whole(tensor), loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    names = {part.__name__ for part in map(provenance.class_of, model.modules())}
    assert type(model) is not Tiny and names == {"Tiny", "Embedding", "ModuleList", "Linear", "LayerNorm"}
    return ""


def spoil(folder: Path) -> str | None:
    """Make one element, in the shard of one process, infinite."""
    state = state_of("fsdp", 0, 1)
    if rank() == world() - 1:
        with torch.no_grad():
            local(state.average["model.norm.bias"])[-1] = torch.inf
    return state.not_finite()


def lose(folder: Path) -> str:
    """Save, then save in the background, and be killed while it is written."""
    state, checkpoints = state_of("fsdp", 0, 1), Checkpoints(folder)
    save(state, checkpoints)
    advance(state, 1)
    if rank() == 1:
        saving.write_pieces = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save(state, checkpoints, background=True)
    time.sleep(0.5)
    saving.LAST_SECONDS = 0.5
    checkpoints.close()
    return ",".join(sorted(file.name for file in folder.iterdir()))


def run(world_size: int, work: Callable[..., Any], *arguments: Any, folder: Path, lost: int = 0) -> list[Any]:
    """Return what `work` returned in each of some processes; a text is the error that it raised; `lost` say nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "torch._dynamo", "axon_core.training.loop"])
    results = context.Queue()
    store = folder / f"store-{time.monotonic_ns()}"
    processes = [
        context.Process(target=_process, args=(number, world_size, store, results, work, arguments), daemon=True)
        for number in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=LIMIT) for _ in range(world_size - lost))
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [found.get(number) for number in range(world_size)]


def _process(number: int, size: int, store: Path, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=size)
    try:
        results.put((number, work(*arguments)))
    except BaseException as error:
        results.put((number, f"{type(error).__name__}: {error}"))
        if not type(error).__module__.startswith("axon_core"):
            traceback.print_exc()
    results.close()
    results.join_thread()
    os._exit(0)  # without waiting for a process that was lost
