"""`axon tokenize` beside Hugging Face's `datasets.map`, with one tokenizer; and the start of a training from shards.

    pip install -c constraints.txt -e ".[bench]" datasets tokenizers
    AXON_DATA_DIR=... python benchmarks/token_shards.py --megabytes 1000 --save

All read the same file of JSON lines, made of Tiny Shakespeare: passages of it over and over, in which one letter in 300
is another. All have the same sentencepiece BPE of 8,000 pieces, trained on that text, and the same number of processes:

- axon: `axon tokenize`, from the start of Python to shards with checksums on disk;
- tokenizers: `datasets.map` with the tokenizers library, and the tokenizer that `axon export` writes for it;
- tokenizers, words: the same, with a pre-tokenizer that splits at spaces, so that the library's cache of words works;
- sentencepiece: `datasets.map` with the library itself.

The times of `datasets` are those of its `map` alone, without Python's start and without reading the JSON. That all give
as many tokens is checked. They take turns; figures are medians. Memory is the most that all processes of a contender
hold at once, and of Axon also what is beside the tokenizer: less what a process has that has only loaded it.

`--start`: shards of 10⁹ tokens are opened and read in windows of 1,025, in a process that reports how long that takes
after the imports, and by how much its resident memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.machine import Others
from support.processes_memory import run_measured
from support.record import facts, save, say

from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards.files import written_shard
from axon_core.text.shards.folder import token_shard_name, write_index
from axon_core.text.tokenizer import ByteTokenizer, SentencePieceTokenizer, train_tokenizer
from axon_xllama.checkpoints.tokenizer_files import tokenizer_files

AXON = [sys.executable, "-c", "from axon_core.cli import main; raise SystemExit(main())"]
PEERS = ("tokenizers", "tokenizers words", "sentencepiece")
LOADED = """
import sys, numpy
from axon_core.text.tokenizer import Tokenizer
Tokenizer.load(sys.argv[1])
print(open("/proc/self/smaps_rollup").read())
"""
START = """
import json, resource, sys, time
import numpy, torch
from axon_core.text import TokenData, TokensConfig
from axon_core import Key
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, begun = resident(), time.perf_counter()
examples = TokenData.load(TokensConfig(path=sys.argv[1])).examples(1024, Key((0,)))
examples.batch(0, 12)
first = time.perf_counter() - begun
begun = time.perf_counter()
for step in range(1, 2000):
    examples.batch(step, 12)
print(json.dumps({"seconds": first, "batch": (time.perf_counter() - begun) / 1999, "bytes": resident() - before}))
"""


def write_documents(file: Path, text: str, size: int) -> None:
    """Write JSON lines of about `size` bytes, each a passage of 500 to 8,000 characters with some letters changed."""
    chosen, written = random.Random(0), 0
    with file.open("w", encoding="utf-8") as lines:
        while written < size:
            begin = chosen.randrange(len(text) - 500)
            letters = list(text[begin : begin + chosen.randint(500, 8000)])
            for _ in range(len(letters) // 300):
                letters[chosen.randrange(len(letters))] = chosen.choice("abcdefghijklmnopqrstuvwxyz")
            written += lines.write(json.dumps({"text": "".join(letters)}) + "\n")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of all contenders."""
    text = (Path(os.environ["AXON_DATA_DIR"]) / "tinyshakespeare" / "input.txt").read_text("utf-8")
    tokenizer = train_tokenizer({"type": "sentencepiece", "vocab_size": 8000}, text)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    tokenizer.save(folder / "tokenizer")
    pipeline = tokenizer_files(tokenizer, 1024)["tokenizer.json"]
    split = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": False},
        ],
    }
    (folder / "whole.json").write_text(json.dumps(pipeline))
    (folder / "words.json").write_text(json.dumps({**pipeline, "pre_tokenizer": split}))
    files = (folder / "whole.json", folder / "words.json", folder / "tokenizer" / "tokenizer.model")
    models = {name: file for name, file in zip(PEERS, files, strict=True) if name in options.only}
    file = folder / "text.jsonl"
    write_documents(file, text, options.megabytes * 1_000_000)
    alone = run_measured([sys.executable, "-c", LOADED, str(folder / "tokenizer")])[2]
    loaded = next(int(line.split()[1]) * 1024 for line in alone.splitlines() if line.startswith("Pss:"))
    found: dict[str, list[dict[str, float]]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    processes = str(options.processes)
    others = Others()
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for name in ("axon", *models):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                if name == "axon":
                    words = ["tokenize", str(file), "--tokenizer", str(folder / "tokenizer"), "--out", f"{out}/shards"]
                    line = [*AXON, *words, "--processes", processes, "--json"]
                    seconds, peak, printed = run_measured(line, env=environment)
                    index = json.loads(printed)
                    tokens, rows = index["tokens"] - index["documents"], index["documents"]
                    found.setdefault(name, []).append({"rate": tokens / seconds, "memory": peak, "seconds": seconds})
                else:
                    script = str(Path(__file__).parent / "support" / "datasets_map.py")
                    line = [sys.executable, script, name, str(file), str(models[name]), out, processes]
                    seconds, peak, printed = run_measured(line, env=environment)
                    theirs = json.loads(printed)
                    rate = theirs["tokens"] / theirs["map"]
                    found.setdefault(name, []).append({"rate": rate, "memory": peak, "seconds": seconds})
                    if (theirs["tokens"], theirs["rows"]) != (tokens, rows):
                        sys.exit(
                            f"{name} does not do what axon does: {theirs}, not {tokens} tokens of {rows} documents"
                        )
    return {"tokens": tokens, "rounds": found, "tokenizer_memory": loaded, "others": others.share()}


def start(folder: Path, tokens: int) -> dict[str, float]:
    """Return how a process begins to read shards of so many tokens."""
    tokenizer, part = ByteTokenizer(), 20_000_000
    shards = {}
    out = folder / "start"
    tokenizer.save(out)
    for number in range(tokens // part):
        name = token_shard_name(number, 0)
        with written_shard(out / name, np.uint16) as shard:
            for _ in range(part // 1000):
                shard.add(np.full(1000, number % 256, np.uint16))
                shard.end_document()
            shards[name] = shard.finish(1, True, tokenizer_fingerprint(tokenizer))
    write_index(out, tokenizer, "0" * 64, shards, "uint16")
    return json.loads(run_measured([sys.executable, "-c", START, str(out)])[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of JSON lines")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="the peers that take part")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=int, default=10**9, help="tokens in shards that are opened; 0 leaves it out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="token-shards-") as folder:
        results = {**facts("cpu", 1), "settings": vars(options), **compare(options, Path(folder))}
        if options.start:
            results["start"] = start(Path(folder), options.start)
    results["seconds"] = time.perf_counter() - begun
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'token-shards-{options.megabytes}mb-cpu', results)}")


def table(results: dict[str, Any]) -> str:
    """Return the figures as text."""
    rounds = results["rounds"]
    rates = {name: statistics.median(one["rate"] for one in found) for name, found in rounds.items()}
    lines = [f"{'':20}{'tokens/s':>12}{'min':>12}{'max':>12}{'axon / it':>11}{'memory, MB':>12}{'all, s':>9}"]
    for name, found in rounds.items():
        low, high = min(one["rate"] for one in found), max(one["rate"] for one in found)
        memory = max(one["memory"] for one in found) / 1e6
        seconds = statistics.median(one["seconds"] for one in found)
        ratio = rates["axon"] / rates[name]
        lines.append(f"{name:20}{rates[name]:12,.0f}{low:12,.0f}{high:12,.0f}{ratio:11.2f}{memory:12.0f}{seconds:9.1f}")
    beside = (max(one["memory"] for one in rounds["axon"]) - results["tokenizer_memory"]) / 1e6
    lines.append(f"{results['tokens']:,} tokens; axon's memory beside a loaded tokenizer: {beside:.0f} MB")
    if began := results.get("start"):
        lines.append(
            f"shards of {results['settings']['start']:,} tokens: first batch after {began['seconds']:.2f} s, then "
            f"{1000 * began['batch']:.2f} ms each; {began['bytes'] / 1e6:.0f} MB more resident after 2,000"
        )
    return "\n".join([*lines, f"others took {results['others']:.0%} of the processors"])


if __name__ == "__main__":
    main()
