"""What checkpoints cost a training: windows of steps with one and without one, in turn, in one run.

    python benchmarks/checkpoints.py

Two processes of one thread each train the 17M shape with DDP or FSDP. At the start of every second window the state is
saved: in the background (`trainer.checkpoint_in_background`), or, beside it, while training waits. A window's time is
that of all its steps; the first two windows are not counted. Figures are medians of each window with a checkpoint over
the one before it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from support.machine import Others
from support.record import facts, save, say
from support.workers import Worker
from train import SHAPES, trainer_for

from axon_core.training.hooks import hook
from axon_core.training.loop import Fit, fit
from axon_core.training.parallel.config import Parallel

KINDS = {"in the background": True, "while training waits": False}


class Windows:
    """Asks for a checkpoint at the start of every second window, and takes the time of each."""

    every_process = True

    def __init__(self, steps: int) -> None:
        self.steps, self.times, self.sizes = steps, list[float](), list[int]()
        self._begun: float | None = None

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> str | None:
        """Note the time of a window that ends with this step, and ask for a checkpoint if the next has one."""
        if fit.state.step % self.steps:
            return None
        now = perf_counter()
        if self._begun is not None:
            self.times.append(now - self._begun)
        self._begun = now
        return "save" if fit.state.step // self.steps % 2 == 0 else None

    @hook
    def saved(self, fit: Fit, path: Path) -> None:
        """Note the bytes of a checkpoint."""
        self.sizes.append(sum(file.stat().st_size for file in path.iterdir()))


def make(rank: int, port: int, strategy: str, shape: str, background: bool, out: str, steps: int, windows: int) -> Any:
    """Return a function that trains and returns the windows' times and the bytes of a checkpoint."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def train() -> tuple[list[float], int]:
        trainer = trainer_for(*SHAPES[shape], "fp32", "cpu", compile=False)
        update = {
            "parallel": Parallel(strategy=strategy),  # pyright: ignore[reportArgumentType]
            "checkpoint_in_background": background,
            "keep_checkpoints": 1,
        }
        trainer.config = trainer.config.model_copy(update=update)
        taken = Windows(steps)
        fit(trainer, out, stop_at=steps * (windows + 1) + 1, hooks=[taken], progress=False)
        return taken.times, max(taken.sizes, default=0)

    return train


def measure(strategy: str, shape: str, background: bool, steps: int, windows: int) -> tuple[list[float], int]:
    """Return the times of the windows of one training, and the bytes of a checkpoint."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        workers = [Worker(make, rank, port, strategy, shape, background, out, steps, windows) for rank in range(2)]
        with ThreadPoolExecutor(2) as pool:
            times, size = next(iter([*pool.map(lambda worker: worker(), workers)]))
        for worker in workers:
            worker.close()
    return times, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=40, help="steps in each window")
    parser.add_argument(
        "--windows", type=int, default=14, help="windows in each training, half of them with a checkpoint"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    options = parser.parse_args()
    others, found = Others(), dict[str, Any]()
    for name in options.only:
        times, size = measure(options.strategy, options.shape, KINDS[name], options.steps, options.windows)
        # The window after step 0 has no checkpoint before it, the next one has, and so on.
        pairs = [*zip(times[2::2], times[3::2], strict=False)]
        found[name] = {"pairs": pairs, "bytes": size, "seconds": times}
    results = {
        **facts("cpu", 2),
        "shape": options.shape,
        "settings": {"strategy": options.strategy, "steps": options.steps, "windows": options.windows},
        "checkpoints": found,
        "others": others.share(),
    }
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'checkpoints-{options.shape}-{options.strategy}-cpu', results)}")


def table(results: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{'a checkpoint':24}{'MB':>8}{'window, s':>12}{'with it, s':>12}{'ratio':>8}{'min':>8}{'max':>8}"]
    for name, kind in results["checkpoints"].items():
        without, having = zip(*kind["pairs"], strict=True)
        ratios = [b / a for a, b in kind["pairs"]]
        lines.append(
            f"{name:24}{kind['bytes'] / 1e6:8.0f}{statistics.median(without):12.2f}{statistics.median(having):12.2f}"
            f"{statistics.median(ratios):8.3f}{min(ratios):8.3f}{max(ratios):8.3f}"
        )
    lines.append(f"others took {results['others']:.0%} of the processors")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
