"""Who decodes in `decode.py`: Axon, transformers and llama.cpp, all with the same weights, all greedy."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from axon_core.generation.api import decode
from axon_core.generation.sampling import Sampling
from axon_core.nn.quantization import quantize
from support.llama_cpp_batch import LlamaBatch, Token
from support.machine import available_memory, peak_memory, reset_peak_memory
from support.record import say
from support.shapes import SHAPES, Shape, transformers_like
from support.workers import Worker

Tokens = list[int]
Generate = Callable[[Sequence[Tokens], int, Callable[[], None]], list[Tokens]]
"""Continues each prompt by so many tokens and returns them; calls the function after each step."""

QUANTIZED: dict[str, Any] = {"int8": "int8", "int4": "int4", "nf4": {"type": "nf4", "double": False}}
"""Axon's quantisations, by precision."""
DTYPES = {"fp32": torch.float32} | dict.fromkeys(("bf16", *QUANTIZED), torch.bfloat16)
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 18 / 32, "nf4": 36 / 64, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes a weight takes; llama.cpp's Q8_0 and Q4_0 have a scale of 2 bytes for 32 weights."""


@dataclass(frozen=True)
class Contender:
    """One library in one way of running."""

    name: str
    library: str
    """`axon`, `transformers` or `llama.cpp`."""
    precision: str
    """A key of `BYTES`."""
    compiled: bool
    load: Callable[[Contender, Shape, str, int, int], Generate]
    """Makes its `Generate` from itself, the shape, the device, the number of threads and the longest text."""


@dataclass(frozen=True)
class Task:
    """What a contender is asked for."""

    prompts: list[Tokens]
    new_tokens: int
    """Tokens for each of them."""

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.prompts)) + self.new_tokens


@dataclass(frozen=True)
class Timing:
    """How long it took."""

    first: float
    """Seconds to the first token."""
    rest: float
    """Seconds from there to the last."""
    tokens: list[Tokens]
    """The new tokens of each prompt."""
    peak: int
    """Largest memory since the weights were there, in bytes: resident, or on a GPU allocated."""

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.first + self.rest


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all measurements of decoding have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="names of contenders, such as '*bf16'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    return parser


def choose(patterns: Sequence[str], device: str) -> list[Contender]:
    """Return the contenders with names like any of `patterns` that can run on the device."""
    here = [c for c in CONTENDERS if device == "cpu" or c.library != "llama.cpp"]
    return [c for c in here if any(fnmatch(c.name, pattern) for pattern in patterns)]


def prompts(shape: Shape, lengths: Sequence[int]) -> list[Tokens]:
    """Return random prompts of these lengths, always the same."""
    chance = random.Random(0)
    return [[chance.randrange(3, shape.vocab_size) for _ in range(length)] for length in lengths]


def start(
    contenders: Sequence[Contender], shape: Shape, device: str, threads: int, tasks: Sequence[Task]
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Load each contender in a process of its own and run its tasks twice; also return who is absent, and why.

    Twice, because a static cache can grow with a later task, and is then compiled again.
    """
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    longest = max(task.length for task in tasks)
    room = 8 * shape.streamed  # the weights in float32, and what they become
    for contender in contenders:
        say(f"loading {contender.name}")
        if available_memory() < room:
            absent[contender.name] = f"no room: {room / 1e9:.1f} GB must be free to load it; choose fewer with --only"
            continue
        try:
            worker = Worker(decoder, contender, shape, device, threads, longest)
            for task in (*tasks, *tasks):
                worker(task)
            workers[contender.name] = worker
        except ModuleNotFoundError as error:
            absent[contender.name] = f"not installed: {error}"
        except RuntimeError as error:
            absent[contender.name] = f"failed: {error}"
    if not workers:
        sys.exit("\n".join(["nobody is left to measure", *(f"{name}: {reason}" for name, reason in absent.items())]))
    return workers, absent


def decoder(contender: Contender, shape: Shape, device: str, threads: int, longest: int) -> Callable[[Task], Timing]:
    """Return the function that times a task of one contender; its peak memory counts from here on."""
    torch.set_num_threads(threads)
    generate = contender.load(contender, shape, device, threads, longest)
    reset_peak_memory(device)

    def timed(task: Task) -> Timing:
        times: list[float] = []
        start = time.perf_counter()
        tokens = generate(task.prompts, task.new_tokens, lambda: times.append(time.perf_counter()))
        return Timing(times[0] - start, times[-1] - times[0], tokens, peak_memory(device))

    return timed


def _axon(contender: Contender, shape: Shape, device: str, threads: int, longest: int) -> Generate:
    """Axon's `decode`; weights of 8 and 4 bits are made of bfloat16 ones."""
    model = shape.axon(device).to(DTYPES[contender.precision]).eval()
    if contender.precision in QUANTIZED:
        model = quantize(model, QUANTIZED[contender.precision])
    greedy = Sampling(temperature=0)

    def generate(prompts: Sequence[Tokens], new: int, step: Callable[[], None]) -> list[Tokens]:
        rows: list[Tokens] = [[] for _ in prompts]
        seeds = [0] * len(prompts)
        for tokens in decode(model, prompts, seeds, max_new_tokens=new, sampling=greedy, compile=contender.compiled):
            step()
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)  # pyright: ignore[reportArgumentType] - no row ends early
        return rows

    return generate


def _transformers(contender: Contender, shape: Shape, device: str, threads: int, longest: int) -> Generate:
    """`generate` of transformers: with its defaults, or with a static cache and its own `torch.compile`."""
    import transformers
    from transformers import CompileConfig
    from transformers.generation.streamers import BaseStreamer

    transformers.logging.set_verbosity_error()
    model: Any = transformers_like(shape.axon(device).to(DTYPES[contender.precision])).eval()
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if contender.compiled:
        compiling = CompileConfig(mode="default" if device == "cpu" else "reduce-overhead")
        compiling._compile_all_devices = True  # pyright: ignore - on a CPU it compiles only if told so
        options |= {"cache_implementation": "static", "compile_config": compiling}

    class Steps(BaseStreamer):
        """Tells of each token; the first thing it is given is the prompt."""

        def __init__(self, step: Callable[[], None]) -> None:
            self.step, self.begun = step, False

        def put(self, value: Tensor) -> None:
            if self.begun:
                self.step()
            self.begun = True

        def end(self) -> None:
            pass

    def generate(prompts: Sequence[Tokens], new: int, step: Callable[[], None]) -> list[Tokens]:
        given = torch.tensor(prompts, device=device)
        mask = torch.ones_like(given)
        found = model.generate(given, attention_mask=mask, max_new_tokens=new, streamer=Steps(step), **options)
        return found[:, given.shape[1] :].tolist()

    return generate


def _llama_cpp(contender: Contender, shape: Shape, device: str, threads: int, longest: int) -> Generate:
    """llama.cpp through `llama_decode`, from a GGUF file that is written here."""
    llama = LlamaBatch(shape, contender.precision, threads, longest)

    def generate(prompts: Sequence[Tokens], new: int, step: Callable[[], None]) -> list[Tokens]:
        (prompt,) = prompts
        llama.clear()
        tokens: Tokens = []
        given, at = prompt, 0
        while len(tokens) < new:
            last = len(given) - 1
            llama.load([Token(token, at + i, 0, i == last) for i, token in enumerate(given)])
            llama.decode()
            tokens.append(llama.likeliest(last))
            step()
            given, at = tokens[-1:], at + len(given)
        return [tokens]

    return generate


CONTENDERS = (
    Contender("axon-fp32", "axon", "fp32", False, _axon),
    Contender("axon-bf16", "axon", "bf16", False, _axon),
    Contender("axon-compiled-fp32", "axon", "fp32", True, _axon),
    Contender("axon-compiled-bf16", "axon", "bf16", True, _axon),
    Contender("axon-compiled-int8", "axon", "int8", True, _axon),
    Contender("axon-compiled-int4", "axon", "int4", True, _axon),
    Contender("axon-compiled-nf4", "axon", "nf4", True, _axon),
    Contender("transformers-fp32", "transformers", "fp32", False, _transformers),
    Contender("transformers-bf16", "transformers", "bf16", False, _transformers),
    Contender("transformers-compiled-bf16", "transformers", "bf16", True, _transformers),
    Contender("llama.cpp-f32", "llama.cpp", "fp32", False, _llama_cpp),
    Contender("llama.cpp-bf16", "llama.cpp", "bf16", False, _llama_cpp),
    Contender("llama.cpp-q8_0", "llama.cpp", "q8_0", False, _llama_cpp),
    Contender("llama.cpp-q4_0", "llama.cpp", "q4_0", False, _llama_cpp),
)
