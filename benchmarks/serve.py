"""Serving side by side over HTTP: `axon serve`, llama.cpp, vLLM and `transformers serve`, with equal weights.

    pip install -c constraints.txt -e ".[bench]" -e plugins/axon-eet -e plugins/axon-llamachat
    python benchmarks/serve.py --save
    python benchmarks/serve.py --only 'vllm*' --vllm peers/vllm/bin/python --save    # in an environment of its own
    python benchmarks/serve.py --only 'llama*' --llama-server peers/llama-server --save

Each server is a process of its own and runs alone, with up to 16 texts at once; one client in another process asks all
of them for the same greedy streams. Prompts have 16 to 512 tokens and answers 16 to 128, drawn with a seed, uniform in
their logarithm; the weights are random, and nobody stops early.

- closed loop: so many streams that ask without a pause;
- open loop: requests arrive as a Poisson process at 0.7 times what Axon's server of that precision answered with 16
  streams, at the same times for all; `tokens/s` is then bounded by what arrives;
- shared beginning: 16 requests at once that have their first 512 tokens in common;
- first: seconds from a request to its first token; between: seconds between two events of a stream; p50 and p99 by
  nearest rank, over the requests or events of the time that is measured;
- memory: the largest of the server's processes, measured after each load.

A contender that does not start is reported with its reason. `--save` keeps figures of contenders that another run has
measured, so that peers can be measured in turns.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from support.contenders import TEXTS, Contender, contenders, tokenizer_for, write_models
from support.http_load import Ask, Heard, Load, arrivals, client, mixed
from support.machine import Others
from support.record import RESULTS, facts, save, say
from support.shapes import SHAPES, Shape
from support.workers import Worker

SHAPES = {"tiny": Shape(64, 2, 4, 2, hidden_dim=128, vocab_size=1000, context=1024), **SHAPES}
RAMP = 2.0
"""Seconds of a closed loop that are not counted."""
SHARE = 0.7
"""The rate of arrivals, as a share of Axon's capacity."""

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="names of contenders, such as '*bf16'")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=12, help="of a closed loop; the open one takes twice as long")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and arrivals")
    parser.add_argument("--vllm", default="python", metavar="PYTHON", help="an interpreter that has vLLM")
    parser.add_argument("--llama-server", default="llama-server", metavar="PROGRAM", help="llama.cpp's server")
    parser.add_argument("--llama-python", default="python", metavar="PYTHON", help="one with llama-cpp-python[server]")
    parser.add_argument("--transformers", default="python", metavar="PYTHON", help="one that has transformers[serving]")
    parser.add_argument("--models", type=Path, help="a folder in which the models are kept for further runs")
    parser.add_argument("--save", action="store_true", help="write the figures into benchmarks/results")
    options = parser.parse_args()
    name, shape = f"serve-{options.shape}-cpu", SHAPES[options.shape]
    before = read(name)
    found: Figures = {**before["contenders"]}
    absent: dict[str, str] = {**before["absent"]}
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.models or Path(temporary)
        if not (folder / "hf").exists():
            say("writing the models")
            write_models(folder, shape)
        names = ("vllm", "llama_server", "llama_python", "transformers")
        programs: dict[str, str] = {each: getattr(options, each) for each in names}
        for contender in contenders(folder, shape, options.threads, **programs):
            if not any(fnmatch(contender.name, pattern) for pattern in options.only):
                continue
            found.pop(contender.name, None)
            absent.pop(contender.name, None)
            try:
                found[contender.name] = measure(contender, shape, options, capacity(contender, found))
            except (FileNotFoundError, RuntimeError) as error:
                absent[contender.name] = without_paths(str(error))
                say(f"{contender.name} is left out: {absent[contender.name]}")
    settings = {key: getattr(options, key) for key in ("seconds", "seed", "threads")} | {"texts": TEXTS}
    results = {
        **facts("cpu", options.threads),
        "shape": {"name": options.shape, **vars(shape)},
        "settings": settings,
        "contenders": found,
        "absent": absent,
        "ratios": ratios(found),
    }
    print(table(results))
    if options.save:
        say(f"saved as {save(name, results)}")


def read(name: str) -> Figures:
    """Return the figures that were saved before."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {"contenders": {}, "absent": {}}


def measure(contender: Contender, shape: Shape, options: argparse.Namespace, capacity: float | None) -> Figures:
    """Start a server, put all loads on it, and return their figures.

    `capacity` is how many tokens a second it is to be able to answer, or None for what it answers to 16 streams.

    Raises:
        RuntimeError: it does not start, or answers no request.
        FileNotFoundError: there is no such program.
    """
    say(f"{contender.name}: starting")
    with contender.start() as server:
        worker = Worker(client, server.root, contender.body)
        others = Others(server.group)
        memory, found = [server.memory()], Figures()

        def put(what: str, load: Load, begin: float) -> Figures:
            heard: list[Heard] = worker(load)
            memory.append(server.memory())
            one = figures(heard, begin, load.seconds if load.streams else None)
            say(f"{contender.name}, {what}: {json.dumps(one)}")
            if not one["events"]:
                raise RuntimeError("; ".join(one["errors"]) or "no token arrived")
            return one

        def asks(what: str, n: int) -> list[Ask]:
            made = mixed(random.Random(f"{options.seed} {what}"), shape.vocab_size, shape.context, n)
            return [as_text(ask, shape) for ask in made] if contender.texts else made

        put("warm-up", Load(asks("warm-up", 2 * TEXTS), 60), 0)
        for n in options.streams:
            load = Load(asks(f"{n} streams", 60 * n), options.seconds, n)
            found[f"{n} streams"] = put(f"{n} streams", load, min(RAMP, options.seconds / 4))
        capacity = capacity or max(one["tokens_per_s"] for one in found.values())
        wanted = asks("open", 2000)
        rate = SHARE * capacity / statistics.mean(ask.new_tokens for ask in wanted)
        timed = arrivals(random.Random(options.seed), wanted, rate)
        timed = [ask for ask in timed if ask.at < 2 * options.seconds]
        found["open"] = {"rate": rate} | put("open", Load(timed, options.seconds), 0)
        found["shared beginning"] = put("shared beginning", Load(beginning(asks("shared", TEXTS), shape), 60), 0)
        worker.close()
        return {
            "version": contender.read_version(),
            "precision": contender.peers,
            "arguments": [part for part in contender.command[1:] if "/" not in part],
            "loads": found,
            "memory": max(memory),
            "others": others.share(),
        }


def as_text(ask: Ask, shape: Shape) -> Ask:
    """Return a request with its prompt as a text."""
    return Ask(tokenizer_for(shape).decode(ask.prompt), ask.new_tokens, ask.at)


def beginning(asks: Sequence[Ask], shape: Shape) -> list[Ask]:
    """Return requests whose first 512 tokens, or half of the context, are those of the first one, and 16 their own."""
    n = min(512, shape.context // 2)
    whole = asks[0].prompt * n
    return [Ask(whole[:n] + (ask.prompt * 16)[:16], 16) for ask in asks]


def capacity(contender: Contender, found: Figures) -> float | None:
    """Return how many tokens a second Axon's server of this precision answers, if that has been measured."""
    axon = found.get(f"axon-{contender.peers}")
    return axon and max(one["tokens_per_s"] for load, one in axon["loads"].items() if load.endswith("streams"))


def figures(heard: Sequence[Heard], begin: float, end: float | None) -> Figures:
    """Return the rates and times of a load between two times; without an end, until the last token."""
    end = end or max((one.times[-1] for one in heard if one.times), default=0.0)
    done = [one for one in heard if one.tokens is not None and one.times]
    events = sum(len(one.times) for one in done)
    each = sum(one.tokens or 0 for one in done) / events if events else 1.0  # tokens of an event
    counted = sum(begin <= t <= end for one in heard for t in one.times)
    first = [one.times[0] - one.asked for one in heard if one.times and one.asked >= begin]
    between = [b - a for one in heard for a, b in pairwise(one.times) if a >= begin and b <= end]
    return {
        "tokens_per_s": each * counted / max(end - begin, 1e-9),
        "first": percentiles(first),
        "between": percentiles(between),
        "answers": len(done),
        "incomplete": sum(one.tokens is None and one.error is None for one in heard),
        "short": sum(one.tokens != one.new_tokens for one in done),
        "events": counted,
        "tokens_per_event": each,
        "cached_tokens": sum(one.cached for one in heard),
        "errors": sorted({without_paths(one.error) for one in heard if one.error}),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the 50th and 99th percentile by nearest rank, and how many values there are."""
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[-(-p * len(ordered) // 100) - 1] for p in (50, 99)} if ordered else {}
    return {**ranks, "n": len(ordered)}


def ratios(found: Figures) -> Figures:
    """Return, for Axon's servers, the figures of each load over those of each peer of the same precision."""
    made: Figures = {}
    for name, axon in found.items():
        if not name.startswith("axon"):
            continue
        for peer, other in found.items():
            if peer.startswith("axon") or other["precision"] != axon["precision"]:
                continue
            loads = {load: one for load, one in axon["loads"].items() if load in other["loads"]}
            made[f"{name} / {peer}"] = {
                load: {"tokens_per_s": one["tokens_per_s"] / other["loads"][load]["tokens_per_s"]}
                | {
                    f"{what} p99": one[what]["p99"] / other["loads"][load][what]["p99"]
                    for what in ("first", "between")
                    if "p99" in one[what] and other["loads"][load][what].get("p99")
                }
                for load, one in loads.items()
            }
    return made


def table(results: Figures) -> str:
    """Return the figures as text."""
    hardware = results["hardware"]
    lines = [
        f"{results['shape']['name']}; {hardware['cpu']}, {hardware['threads']} threads; seconds; memory in MiB",
        f"{'':28}{'load':18}{'tokens/s':>9}{'first p50':>10}{'p99':>8}{'between p50':>12}{'p99':>8}{'memory':>8}",
    ]
    for name, one in results["contenders"].items():
        for load, found in one["loads"].items():
            first, between = found["first"], found["between"]
            numbers = f"{first.get('p50', 0):10.3f}{first.get('p99', 0):8.3f}"
            numbers += f"{between.get('p50', 0):12.4f}{between.get('p99', 0):8.4f}{one['memory'] / 2**20:8.0f}"
            lines.append(f"{name:28}{load:18}{found['tokens_per_s']:9.1f}{numbers}")
    for pair, loads in results["ratios"].items():
        told = ", ".join(f"{load} {one['tokens_per_s']:.2f}" for load, one in loads.items())
        lines.append(f"{pair}, tokens/s: {told}")
        told = {load: one.get("first p99") for load, one in loads.items()}
        lines.append(f"{pair}, first p99: " + ", ".join(f"{load} {x:.2f}" for load, x in told.items() if x))
    lines += [f"{name:28}{reason}" for name, reason in results["absent"].items()]
    return "\n".join(lines)


def without_paths(text: str) -> str:
    """Return an error message without the folders of this machine."""
    return re.sub(r"(/[\w.+-]+)+/", "", text)[-600:]


if __name__ == "__main__":
    main()
