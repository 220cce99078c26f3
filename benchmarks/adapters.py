"""Adapters side by side: Axon, and transformers with PEFT (and bitsandbytes), from the same weights, in one run.

    pip install -c constraints.txt -e ".[bench]" peft bitsandbytes
    python benchmarks/adapters.py lora --save       # LoRA on the 125M shape, in float32 and in bf16
    python benchmarks/adapters.py qlora --save      # adapters on NF4, 1.1B shape
    python benchmarks/adapters.py full --save       # all weights of it in bf16, with transformers
    python benchmarks/adapters.py quality MODEL     # the held-out loss of a model folder in fewer bits

Each side trains in a process of its own (`support/adapter_sides.py`); they take turns. Each A starts from the same
numbers, so that the losses of the first updates must agree: that is checked. Memory is the most that a process has
resident beyond what its imports take, after its weights are read and while it trains; what reading them takes is given
apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from support.adapter_sides import Side
from support.contenders import tokenizer_for
from support.machine import Others
from support.record import facts, save, say
from support.shapes import SHAPES

from axon_core.interfaces import CausalLM
from axon_core.nn import quantize
from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import Tokenizer
from axon_core.training.evaluation import held_out_likelihood
from axon_xllama.checkpoints import export_checkpoint

CHECKED = 2
"""How many of the first updates' losses must agree."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
QUALITIES = ("fp32", "bf16", "int8", "int4", "nf4")


class Process:
    """A side in training."""

    def __init__(self, side: Side, threads: int) -> None:
        command = [sys.executable, "-m", "support.adapter_sides", json.dumps(asdict(side))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.losses: list[float] = []
        self.start = self._answer()

    def run(self, updates: int) -> dict[str, Any]:
        """Make so many updates; return what they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{updates}\n")
        self._process.stdin.flush()
        found = self._answer()
        self.losses += found.pop("losses")
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with the code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def models(name: str, kept: Path | None, *, dtype: torch.dtype) -> Generator[str]:
    """Yield a folder with the same weights of a shape as Axon's folder `axon` and as Hugging Face's `hf`."""
    with ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "hf").exists():
            say(f"writing the weights of {name}")
            SHAPES[name].axon().to(dtype).save(folder / "axon", tokenizer_for(SHAPES[name]))
            export_checkpoint(folder / "axon", folder / "hf", format="hf")
        yield str(folder)


def compare(sides: dict[str, Side], rounds: int, updates: int, threads: int, tolerance: float) -> dict[str, Any]:
    """Return what each side takes; exits if a side does not compute what the first does."""
    processes = {name: Process(side, threads) for name, side in sides.items()}
    found: dict[str, Any] = {name: {"start": process.start, "seconds": []} for name, process in processes.items()}
    for name, process in processes.items():
        process.run(CHECKED)
        say(f"{name}: losses {', '.join(f'{loss:.5f}' for loss in process.losses)}")
    first = next(iter(processes.values())).losses[:CHECKED]
    for name, process in processes.items():
        if not torch.allclose(torch.tensor(process.losses), torch.tensor(first), rtol=tolerance, atol=0):
            sys.exit(f"{name} does not do what the first side does: losses {process.losses}, not {first}")
    others = Others()
    for _ in range(rounds):
        for name, process in processes.items():
            measured = process.run(updates)
            found[name]["seconds"].append(measured["seconds"] / updates)
            found[name]["training"] = measured["training"]
    for name, process in processes.items():
        found[name]["losses"] = process.losses
        process.end()
    return {"sides": found, "others": others.share()}


def lora(options: argparse.Namespace) -> dict[str, Any]:
    """Return LoRA's figures, for each precision."""
    results: dict[str, Any] = {}
    with models(options.shape or "125m", options.models, dtype=torch.float32) as folder:
        for precision in options.precision:
            axon = Side("axon", folder, precision=precision, windows=options.windows or 8, tokens=options.tokens or 256)
            sides = {"axon": axon, "peft": replace(axon, program="peft")}
            results[precision] = compare(sides, options.rounds, 1, options.threads, TOLERANCE[precision])
    return results


def qlora(options: argparse.Namespace) -> dict[str, Any]:
    """Return QLoRA's figures."""
    with models(options.shape or "1.1b", options.models, dtype=torch.bfloat16) as folder:
        axon = Side("axon", folder, quantized=True, precision="bf16", checkpointing=True)
        axon = replace(axon, windows=options.windows or 1, tokens=options.tokens or 512)
        sides = {"axon": axon, "peft": replace(axon, program="peft")}
        return {"qlora": compare(sides, options.rounds, 1, options.threads, TOLERANCE["bf16"])}


def full(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of full fine-tuning in bfloat16, which takes a large part of the memory there is."""
    with models(options.shape or "1.1b", options.models, dtype=torch.bfloat16) as folder:
        side = Side("full", folder, precision="bf16", checkpointing=True)
        side = replace(side, windows=options.windows or 1, tokens=options.tokens or 512)
        return {"bf16": compare({"full": side}, options.rounds, 1, options.threads, TOLERANCE["bf16"])}


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Return the held-out loss of a saved model, and how long rounding takes, with each type of weights."""
    model: CausalLM = CausalLM.load(options.model)
    data = TextData.load({"held_out": 0.1}, Tokenizer.load(options.model))
    results: dict[str, Any] = {}
    for name in QUALITIES:
        begun = time.perf_counter()
        kept = model if name == "fp32" else quantize(model, name) if name != "bf16" else CausalLM.load(options.model)
        seconds = time.perf_counter() - begun
        if name == "bf16":
            kept = kept.bfloat16()
        with torch.inference_mode():
            found = held_out_likelihood(kept, data, options.tokens or 4096, 512)
        results[name] = {"loss": found["loss"], "tokens": found["tokens"], "seconds to round": seconds}
        say(f"{name}: {results[name]}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lora", "qlora", "full", "quality"])
    parser.add_argument("model", nargs="?", type=Path, help="for quality: an Axon model folder")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--precision", choices=TOLERANCE, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--windows", type=int)
    parser.add_argument("--tokens", type=int, help="of a window; for quality, in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="where the weights are kept for another run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    options = parser.parse_args()
    if (options.what == "quality") != (options.model is not None):
        parser.error("quality, and nothing else, needs a MODEL")
    measured = {"lora": lora, "qlora": qlora, "full": full, "quality": quality}[options.what](options)
    settings = {name: getattr(options, name) for name in ("shape", "windows", "tokens", "rounds")}
    results = {**facts("cpu", options.threads), "settings": settings, "results": measured}
    print(json.dumps(measured, indent=2) if options.what == "quality" else table(measured))
    if options.save:
        say(f"saved as {save(f'adapters-{options.what}-cpu', results)}")


def table(results: dict[str, Any]) -> str:
    """Return the figures of trainings as text."""
    lines = [f"{'':14}{'s an update':>12}{'min':>8}{'max':>8}{'training, MB':>14}{'reading, MB':>13}{'reading, s':>12}"]
    for kind, measured in results.items():
        for name, found in measured["sides"].items():
            seconds = found["seconds"]
            row = f"{f'{name} {kind}':14}{statistics.median(seconds):12.3f}{min(seconds):8.3f}{max(seconds):8.3f}"
            row += f"{found['training'] / 1e6:14.0f}{found['start']['loading'] / 1e6:13.0f}"
            lines.append(f"{row}{found['start']['seconds']:12.2f}")
        lines.append(f"others took {measured['others']:.0%} of the processors")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
