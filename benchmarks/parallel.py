"""Training on two processes side by side: Axon with DDP and FSDP2, others with both, and Axon in one process.

    pip install -c constraints.txt -e ".[bench]"    # transformers and accelerate
    python benchmarks/parallel.py

- axon: one process with two threads;
- axon ddp, axon fsdp: two processes of one thread each, `trainer.parallel.strategy`;
- accelerate ddp: `LlamaForCausalLM` under Accelerate's DDP, in a plain loop;
- transformers fsdp: the same under PyTorch's `fully_shard`, layer by layer, as Accelerate's FSDP version 2 has it on
  GPUs; on CPUs that is DDP, whatever is asked for (`findings/accelerate-fsdp-on-cpus-is-ddp.sh`).

All start from the same weights, and make updates with torch's fused AdamW, gradients limited to a norm of 1, on the
same batches, of which each process has half. The losses of the first updates must agree: that is checked. Then the
sides take turns, some updates each, for some rounds; figures are medians, ratios those of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from support.machine import Others
from support.record import facts, save, say
from support.shapes import transformers_like
from support.workers import Worker
from train import CHECKED, SHAPES, AxonTraining, trainer_for

Train = Callable[[int], "list[float]"]
SIDES = {"axon": 1, "axon ddp": 2, "axon fsdp": 2, "accelerate ddp": 2, "transformers fsdp": 2}
"""Each with the number of its processes, which share two threads."""
TOLERANCE = 1e-4
_held = ExitStack()


def make(side: str, shape_name: str, batch_size: int, rank: int, port: int) -> Train:
    """Return a function that makes so many updates and returns all losses so far; a side's processes call it alike."""
    torch.set_num_threads(2 // SIDES[side])
    started: list[Train] = []

    def train(updates: int) -> list[float]:
        if not started:
            started.append(MAKERS[side.split()[0]](side, shape_name, batch_size, rank, port))
        return started[0](updates)

    return train


def _join(side: str, rank: int, port: int) -> None:
    world = SIDES[side]
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _axon(side: str, shape_name: str, batch_size: int, rank: int, port: int) -> Train:
    from axon_core.training.parallel.config import Parallel
    from axon_core.training.parallel.group import joined
    from axon_core.training.parallel.strategies import prepare

    trainer = trainer_for(SHAPES[shape_name][0], batch_size, "fp32", "cpu", compile=False)
    if SIDES[side] > 1:
        _join(side, rank, port)
        _held.enter_context(joined())  # until the process ends
        strategy = side.removeprefix("axon ")
        trainer.config = trainer.config.model_copy(update={"parallel": Parallel(strategy=strategy)})  # pyright: ignore[reportArgumentType]
        prepare(trainer)
    training = AxonTraining(trainer)

    def train(updates: int) -> list[float]:
        training.run(updates)
        return training.losses

    return train


def _accelerate(side: str, shape_name: str, batch_size: int, rank: int, port: int) -> Train:
    from accelerate import Accelerator

    _join(side, rank, port)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = Accelerator(cpu=True)

    def prepare(model: Any) -> Peer:
        model, optimizer = accelerator.prepare(model, _optimizer(model))
        return Peer(model, optimizer, accelerator.backward, accelerator.clip_grad_norm_)

    return _plain(prepare, shape_name, batch_size, rank)


def _fully_shard(side: str, shape_name: str, batch_size: int, rank: int, port: int) -> Train:
    from torch.distributed.fsdp import fully_shard
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    _join(side, rank, port)
    dist.init_process_group("gloo")

    def prepare(model: Any) -> Peer:
        for layer in [module for module in model.modules() if isinstance(module, LlamaDecoderLayer)]:
            fully_shard(layer)
        fully_shard(model)
        return Peer(model, _optimizer(model), torch.Tensor.backward, torch.nn.utils.clip_grad_norm_)

    return _plain(prepare, shape_name, batch_size, rank)


class Peer(NamedTuple):
    """Another library's model, made ready for two processes."""

    model: Any
    optimizer: Any
    backward: Callable[[Any], object]
    clip: Callable[[Any, float], object]


def _optimizer(model: Any) -> torch.optim.Optimizer:
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


def _plain(prepare: Callable[[Any], Peer], shape_name: str, batch_size: int, rank: int) -> Train:
    trainer = trainer_for(SHAPES[shape_name][0], batch_size, "fp32", "cpu", compile=False)
    peer = prepare(transformers_like(trainer.model).train())
    losses: list[float] = []

    def train(updates: int) -> list[float]:
        for _ in range(updates):
            tokens = trainer.batch(len(losses))["tokens"].tensor_split(2)[rank]
            targets = tokens[:, 1:].contiguous()
            loss = peer.model(tokens[:, :-1], labels=targets, shift_labels=targets, use_cache=False).loss
            peer.backward(loss)
            peer.clip(peer.model.parameters(), 1.0)
            peer.optimizer.step()
            peer.optimizer.zero_grad(set_to_none=True)
            mean = loss.detach() / 2
            dist.all_reduce(mean)
            losses.append(mean.item())
        return losses

    return train


MAKERS = {"axon": _axon, "accelerate": _accelerate, "transformers": _fully_shard}


class Side:
    """The processes of one side, which do everything together."""

    def __init__(self, name: str, shape: str, batch_size: int) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self._workers = [Worker(make, name, shape, batch_size, rank, port) for rank in range(SIDES[name])]
        self._pool = ThreadPoolExecutor(len(self._workers))

    def train(self, updates: int) -> list[float]:
        """Make so many updates, and return all losses so far."""
        return next(iter([*self._pool.map(lambda worker: worker(updates), self._workers)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--batch-size", type=int, help="windows in each update (default: the shape's)")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=2, help="updates in each turn")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    options = parser.parse_args()
    shape, usual = SHAPES[options.shape]
    batch_size = options.batch_size or usual
    sides: dict[str, Side] = {}
    losses: dict[str, list[float]] = {}
    for name in options.only:
        try:
            side = Side(name, options.shape, batch_size)
            losses[name], sides[name] = side.train(CHECKED), side
        except ModuleNotFoundError as error:
            say(f"{name} is left out: {error}")
    expected = torch.tensor(next(iter(losses.values())))
    for name, found in losses.items():
        if not torch.allclose(torch.tensor(found), expected, rtol=TOLERANCE, atol=0):
            sys.exit(f"{name} does not do what the others do: losses {found}, not {expected.tolist()}")
    others, rates = Others(), {name: list[float]() for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            begun = perf_counter()
            side.train(options.updates)
            rates[name].append(options.updates * batch_size * shape.context / (perf_counter() - begun))
    results = {
        **facts("cpu", 2),
        "shape": {"name": options.shape, **vars(shape), "batch_size": batch_size},
        "settings": {"rounds": options.rounds, "updates": options.updates},
        "tokens_per_second": rates,
        "others": others.share(),
    }
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'parallel-{options.shape}-{batch_size}-windows-cpu', results)}")


def table(results: dict[str, Any]) -> str:
    """Return the figures as text, with the ratio of Axon's two strategies to each side."""
    rates = results["tokens_per_second"]
    lines = [f"{'tokens a second':20}{'median':>10}{'min':>10}{'max':>10}{'axon ddp / it':>16}{'axon fsdp / it':>16}"]
    for name, found in rates.items():
        row = f"{name:20}{statistics.median(found):10.0f}{min(found):10.0f}{max(found):10.0f}"
        for ours in ("axon ddp", "axon fsdp"):
            if ours in rates:
                row += f"{statistics.median(o / f for o, f in zip(rates[ours], found, strict=True)):16.2f}"
        lines.append(row)
    lines.append(f"others took {results['others']:.0%} of the processors")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
