"""Decoding side by side: Axon, transformers and llama.cpp on one shape, with the same random weights, in one run.

    pip install -c constraints.txt -e ".[bench]"    # the others; who is not installed is named and left out
    python benchmarks/decode.py --shape 125m
    python benchmarks/decode.py --shape 1.1b --only '*bf16' '*int8' '*q8_0' --save

Each contender has a process of its own, loads its weights once, and runs everything once to warm up and to compile.
Then they take turns, one at a time, for some rounds; figures are medians over the rounds. Batch 1, greedy, and nobody
stops early.

- decode: tokens a second after the first, 128 of them following a prompt of 16;
- GB/s: the bytes of all weights but the embedding table, times that; what is read of a cache is not counted;
- bound: that as a share of the memory's bandwidth (`support/bandwidth.py`), likewise a median: it is measured before
  each turn, since on a machine with neighbours it changes all the time;
- / eager, / static, / llama.cpp: the speed over that of transformers with its defaults, of transformers with a static
  cache and `torch.compile`, and of llama.cpp, in the same precision (int8 stands beside Q8_0);
- prefill: prompt tokens a second up to the first new one, for a prompt of 256;
- peak: the largest memory of the process since its weights were loaded, warm-up and compilation included.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch
from support.bandwidth import bandwidth
from support.decoders import BYTES, Contender, Task, Timing, Tokens, arguments, choose, prompts, start
from support.machine import Others
from support.record import facts, save, say
from support.shapes import SHAPES, Shape
from support.workers import Worker

PEERS = {"eager": ("transformers", False), "static": ("transformers", True), "llama.cpp": ("llama.cpp", False)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompt", type=int, default=16, help="tokens before those whose decoding is timed")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens whose decoding is timed")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the prompt whose prefill is timed")
    options = parser.parse_args()
    shape, device, threads = SHAPES[options.shape], options.device, options.threads
    short, long = prompts(shape, [options.prompt, options.prefill])
    decoding, prefill = Task([short], options.new_tokens), Task([long], 1)
    contenders = choose(options.only, device)
    workers, absent = start(contenders, shape, device, threads, [decoding, prefill])
    memory = Worker(bandwidth, device, threads)
    others = Others()
    bandwidths: list[float] = []
    turns: dict[str, list[tuple[Timing, Timing]]] = {name: [] for name in workers}
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}")
        for name, worker in workers.items():
            bandwidths.append(memory())
            turns[name].append((worker(decoding), worker(prefill)))
    disturbed = others.share()
    for worker in (memory, *workers.values()):
        worker.close()
    bound = statistics.median(bandwidths)
    found = [figures(c, turns[c.name], shape, decoding, prefill, bound) for c in contenders if c.name in turns]
    for one in found:
        one["ratios"] = ratios(one, found)
    exact = {c.name: turns[c.name][0][0].tokens[0] for c in contenders if c.precision == "fp32" and c.name in turns}
    results = {
        **facts(device, threads),
        "shape": {"name": options.shape, **vars(shape), "streamed_weights": shape.streamed},
        "settings": {key: getattr(options, key) for key in ("prompt", "new_tokens", "prefill", "rounds")},
        "bandwidth": {"median": bound, "min": min(bandwidths), "max": max(bandwidths)},
        "others": disturbed,
        "contenders": found,
        "equal_tokens": {name: agreement(next(iter(exact.values())), tokens) for name, tokens in exact.items()},
        "absent": absent,
    }
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'decode-{options.shape}-{torch.device(device).type}', results)}")


def figures(
    contender: Contender,
    turns: list[tuple[Timing, Timing]],
    shape: Shape,
    decoding: Task,
    prefill: Task,
    bandwidth: float,
) -> dict[str, Any]:
    """Return what one contender's turns came to: tokens a second, and bytes."""
    rates = [(decoding.new_tokens - 1) / timing.rest for timing, _ in turns]
    streamed = statistics.median(rates) * shape.streamed * BYTES[contender.precision]
    return {
        "name": contender.name,
        "library": contender.library,
        "precision": contender.precision,
        "compiled": contender.compiled,
        "decode": statistics.median(rates),
        "decode_rounds": rates,
        "bytes_per_second": streamed,
        "of_bandwidth": streamed / bandwidth,
        "prefill": len(prefill.prompts[0]) / statistics.median(timing.first for _, timing in turns),
        "peak": max(timing.peak for _, timing in turns),
    }


def agreement(expected: Tokens, found: Tokens) -> int:
    """Return how many of the first tokens are equal."""
    return next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), len(expected))


def ratios(one: dict[str, Any], contenders: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return how many times as fast as its peers a contender is."""
    precisions = (one["precision"], "q8_0" if one["precision"] == "int8" else None)
    peers = {(c["library"], c["compiled"]): c for c in contenders if c["precision"] in precisions}
    present = {column: peers[peer] for column, peer in PEERS.items() if peer in peers}
    return {
        what: {column: one[what] / peer[what] for column, peer in present.items()} for what in ("decode", "prefill")
    }


def table(results: dict[str, Any]) -> str:
    """Return the figures as text."""
    hardware, memory, contenders = (results[key] for key in ("hardware", "bandwidth", "contenders"))
    heads = "".join(f"{f'/ {column}':>12}" for column in PEERS)
    lines = [
        f"{results['shape']['name']}: {results['shape']['streamed_weights'] / 1e6:.0f}M weights a token; "
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['threads']} threads, torch {results['versions']['torch']}; "
        f"medians of {results['settings']['rounds']}; others took {results['others']:.0%} of the processors; "
        f"bandwidth {memory['median'] / 1e9:.1f} GB/s ({memory['min'] / 1e9:.1f} to {memory['max'] / 1e9:.1f})",
        f"{'':26}{'decode':>8}{'GB/s':>7}{'bound':>7}{heads}{'prefill':>10}{heads}{'peak MiB':>11}",
    ]
    for c in contenders:
        row = f"{c['name']:26}{c['decode']:8.1f}{c['bytes_per_second'] / 1e9:7.1f}{c['of_bandwidth']:7.0%}"
        row += "".join(f"{c['ratios']['decode'].get(peer, ''):12.4}" for peer in PEERS) + f"{c['prefill']:10.0f}"
        row += "".join(f"{c['ratios']['prefill'].get(peer, ''):12.4}" for peer in PEERS)
        lines.append(f"{row}{c['peak'] / 2**20:11.0f}")
    lines += [f"{name:26}{reason}" for name, reason in results["absent"].items()]
    for name, same in list(results["equal_tokens"].items())[1:]:
        first, new = next(iter(results["equal_tokens"])), results["settings"]["new_tokens"]
        lines.append(f"{name} chose the same tokens as {first} up to number {same} of {new}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
