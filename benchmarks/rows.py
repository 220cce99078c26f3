"""Products and decoding steps of 1 to 256 rows: packed weights, torch's linear maps and llama.cpp.

    pip install -c constraints.txt -e ".[bench]"    # llama.cpp; without it, it is named and left out
    python benchmarks/rows.py products
    python benchmarks/rows.py steps --rounds 5 --save

- products: all linear maps of the shape, one after the other, with packed weights and with torch; milliseconds, and the
  share of the bound: the longer of reading the weights (`support/bandwidth.py`) and of the multiplications (torch's
  float32 product of 1,024 rows, which is nearly all that the processor multiplies).
- steps: one decoding step of so many sequences, 64 tokens after their beginning, from tokens to scores: the pass that
  axon-eet's engine runs, eager and compiled, and llama.cpp through `llama_decode`. Each has a process of its own, and
  all take turns; figures are medians over steps and rounds. A change of the number of rows costs what the first step
  after it takes longer. With `--neighbour`, another process keeps one processor half busy meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from support.bandwidth import bandwidth
from support.decoders import BYTES, DTYPES, QUANTIZED
from support.machine import Others
from support.record import facts, save, say
from support.row_steps import PAST, Steps, llama_steps, packed_steps
from support.shapes import SHAPES, Shape
from support.workers import Worker
from torch import nn

from axon_core.nn import pack_products, quantize

PEERS = {"fp32": "fp32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0", "nf4": "q4_0"}
"""What llama.cpp calls a precision."""

CONTENDERS = ("eager", "compiled", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "steps"])
    parser.add_argument("--shape", default="125m", choices=SHAPES)
    parser.add_argument("--precision", nargs="+", default=["bf16", "int8"], choices=PEERS)
    parser.add_argument("--rows", nargs="+", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="steps of a round that are timed")
    parser.add_argument("--only", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="whose steps are timed")
    parser.add_argument("--neighbour", action="store_true", help="keep one processor half busy beside the steps")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    options = parser.parse_args()
    others = Others()
    found = (products if options.what == "products" else steps)(options)
    results = {**facts("cpu", options.threads), "others": others.share(), "figures": found}
    print(json.dumps(found, indent=2))
    say(f"others took {results['others']:.0%} of the processors")
    if options.save:
        say(f"saved as {save(_file(options), results)}")


def products(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the time of all linear maps of the shape, for each precision and number of rows."""
    torch.set_num_threads(options.threads)
    shape, read = SHAPES[options.shape], bandwidth("cpu", options.threads)
    found: list[dict[str, Any]] = []
    for precision in options.precision:
        maps = linear_maps(shape, precision)
        packed = [
            pack_products(quantize(nn.Sequential(one), QUANTIZED[precision])[0] if precision in QUANTIZED else one)
            for one in maps
        ]
        for rows in options.rows or [1, 2, 4, 8, 16, 64, 256]:
            inputs = {d: torch.randn(rows, d).to(DTYPES[precision]) for d in {one.in_features for one in maps}}
            seconds = {"packed": float("inf"), "torch": float("inf")}
            for _ in range(options.rounds):
                for name, run in (("packed", packed), ("torch", maps)):
                    calls = [(one, inputs[like.in_features]) for one, like in zip(run, maps, strict=True)]
                    seconds[name] = min(seconds[name], fastest(lambda calls=calls: [one(x) for one, x in calls]))
            weights = sum(one.weight.numel() for one in maps)
            operations, size = 2 * weights * rows, weights * BYTES[precision]
            reading, multiplying = size / read(), operations / multiplications()
            one = {"precision": precision, "rows": rows, "ms": {name: 1e3 * s for name, s in seconds.items()}}
            one |= {"gflops": operations / seconds["packed"] / 1e9, "gb_per_s": size / seconds["packed"] / 1e9}
            one |= {"bound_ms": {"reading": 1e3 * reading, "multiplying": 1e3 * multiplying}}
            one["of_bound"] = max(reading, multiplying) / seconds["packed"]
            found.append(one)
            say(
                "{} {:4} rows: {:7.2f} ms, torch {:8.2f} ms, {:4.0%} of the bound".format(
                    precision, rows, *one["ms"].values(), one["of_bound"]
                )
            )
    return found


def linear_maps(shape: Shape, precision: str) -> list[nn.Linear]:
    """Return the linear maps of all layers, and the head, with random weights."""
    heads = shape.dim + 2 * shape.dim * shape.n_kv_heads // shape.n_heads
    layer = [
        (shape.dim, heads),
        (shape.dim, shape.dim),
        (shape.dim, 2 * shape.hidden_dim),
        (shape.hidden_dim, shape.dim),
    ]
    sizes = [*layer * shape.n_layers, (shape.dim, shape.vocab_size)]
    return [nn.Linear(d, r, bias=False).to(DTYPES[precision]).requires_grad_(False) for d, r in sizes]


def multiplications() -> float:
    """Return how many operations a second torch's product of 1,024 rows does in float32."""
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / fastest(lambda: a @ b)


def fastest(run: Callable[[], object]) -> float:
    """Return the least time of five calls."""
    best = float("inf")
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return best


def steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the median time of a step, for each precision, number of rows and contender."""
    numbers: list[int] = options.rows or [1, 2, 4, 8, 16]
    found: list[dict[str, Any]] = []
    for precision in options.precision:
        workers = _start(options, precision, max(numbers))
        times: dict[tuple[int, str], list[float]] = {}
        changes: dict[str, list[float]] = {}
        with neighbour() if options.neighbour else nullcontext():
            for turn, rows, (name, worker) in product(range(options.rounds + 1), numbers, workers.items()):
                first, *others = worker(rows, options.steps)
                if turn:  # the first warms up
                    times.setdefault((rows, name), []).extend(others)
                    changes.setdefault(name, []).append(first - statistics.median(others))
        for worker in workers.values():
            worker.close()
        for rows in numbers:
            median = {name: statistics.median(times[rows, name]) for name in workers}
            one: dict[str, Any] = {"precision": precision, "rows": rows, "ms": {n: 1e3 * s for n, s in median.items()}}
            one["tokens_per_s"] = {name: rows / seconds for name, seconds in median.items()}
            one["change_of_rows_ms"] = {name: 1e3 * statistics.median(changes[name]) for name in workers}
            if "llama.cpp" in median:
                one["of_llama_cpp"] = {n: median["llama.cpp"] / s for n, s in median.items() if n != "llama.cpp"}
            found.append(one)
            say(f"{precision} {rows:4} rows: " + ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in median.items()))
    return found


def _start(options: argparse.Namespace, precision: str, rows: int) -> dict[str, Worker]:
    """Start the contenders; who is not installed is named and left out."""
    common = (options.threads, PAST + options.steps, rows)
    makers: dict[str, tuple[Callable[..., Steps], tuple[object, ...]]] = {
        "eager": (packed_steps, (SHAPES[options.shape], precision, *common, False)),
        "compiled": (packed_steps, (SHAPES[options.shape], precision, *common, True)),
        "llama.cpp": (llama_steps, (SHAPES[options.shape], PEERS[precision], *common)),
    }
    workers: dict[str, Worker] = {}
    for name, (make, arguments) in ((name, makers[name]) for name in options.only):
        try:
            workers[name] = Worker(make, *arguments)
        except (ModuleNotFoundError, RuntimeError) as error:
            say(f"{name} is left out: {error}")
    return workers


@contextmanager
def neighbour() -> Generator[None]:
    """Keep one processor half busy inside the block, with a process that computes 10 ms of every 20."""
    busy = subprocess.Popen([sys.executable, "-c", _HALF_BUSY])
    try:
        yield
    finally:
        busy.terminate()
        busy.wait()


_HALF_BUSY = """
import os, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
while True:
    until = time.perf_counter() + 0.01
    while time.perf_counter() < until:
        pass
    time.sleep(0.01)
"""


def _file(options: argparse.Namespace) -> str:
    """The name of the file in results/."""
    return f"rows-{options.what}-{options.shape}{'-neighbour' * options.neighbour}"


if __name__ == "__main__":
    main()
