"""The valid inputs that the fuzzer changes: tiny, and made by the commands that a user would make them with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from fuzz.formats import toml
from fuzz.running import run

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 12
SIZES = {"context": 8, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}

RECIPES: dict[str, dict[str, Any]] = {
    "text": {
        "summary": "A small model on a pangram",
        "data": {"path": "text.txt", "held_out": 0.2, "tokenizer": {"type": "char"}},
        "model": {
            "type": "xllama",
            **SIZES,
            "attention": {"type": "GQA", "n_kv_heads": 1, "qk_norm": "rmsnorm"},
            "rotary": {"type": "rotary", "base": 10000.0},
            "norm": {"type": "rmsnorm", "eps": 1e-6},
        },
        "trainer": {
            "type": "causal_lm",
            "steps": 3,
            "batch_size": 2,
            "schedule": "linear",
            "warmup": 1,
            "max_grad_norm": 1.0,
            "seed": 1,
            "optimizer": {"type": "muon", "lr": 0.02, "momentum": 0.9, "embedding_lr": 0.1},
        },
    },
    "translation": {
        "data": {"train": {"reverse": 40}, "valid": {"reverse": 5}, "tokenizer": "byte"},
        "model": {"type": "transformer", "context": 32, "dim": 16, "n_heads": 2}
        | {"encoder_layers": 1, "decoder_layers": 1, "dropout": 0.1},
        "trainer": {"type": "translation", "steps": 2, "batch_size": 64, "warmup": 1},
    },
    "control": {
        "data": {"environment": {"type": "steering", "limit": 6}},
        "model": {"type": "perceptron", "hidden": [8]},
        "trainer": {"type": "ppo_control", "steps": 2, "batch_size": 2, "length": 6, "epochs": 1, "minibatches": 1}
        | {"gamma": 0.95, "max_grad_norm": 0.5, "optimizer": {"type": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]}},
    },
    "vowels": {
        "data": {"prompts": ["once", "no", "a king"], "held_out": 0.4, "tokenizer": {"type": "char"}},
        "model": {"policy": {"type": "xllama", **SIZES}, "reward": {"type": "regex", "pattern": "[aeiou]"}},
        "trainer": {"type": "ppo", "steps": 2, "batch_size": 2, "response_tokens": 2, "kl_coefficient": 0.02},
    },
    "preferences": {
        "data": {"path": "rows.jsonl", "held_out": 0.4},
        "model": {"init": "model"},
        "trainer": {"type": "dpo", "steps": 2, "batch_size": 2, "loss": {"type": "sigmoid", "beta": 0.1}},
    },
    "ranks": {
        "data": {"path": "ranks.jsonl", "held_out": 0.4},
        "model": {"init": "model"},
        "trainer": {"type": "reward", "steps": 2, "batch_size": 2},
    },
    "pictures": {
        "data": {"path": "pictures.npz", "classes": True, "held_out": 0.2},
        "model": {"type": "unet", "width": 4, "groups": 2, "multipliers": [1], "blocks": 1, "attention_at": []},
        "trainer": {"type": "ddpm", "steps": 2, "batch_size": 2, "compared": 0, "bound_steps": 1, "grid": 1}
        | {"diffusion": {"schedule": {"type": "cosine", "steps": 3}}},
    },
}

ROWS = [
    {"prompt": "the quick", "chosen": " fox", "rejected": " dog"},
    {"prompt": "pack", "chosen": " my", "rejected": " box", "margin": 1.0},
    {"prompt": "the", "chosen": " dog", "rejected": " fox", "unfinished": ["rejected"]},
    {"prompt": "jugs", "chosen": " of", "rejected": "."},
]
RANKS = [
    {"prompt": "the", "responses": [" fox", " dog", " box"], "ranking": [2, 0, 1]},
    {"prompt": "five", "responses": [" jugs", " my"], "ranking": [1, 0], "unfinished": [0]},
    {"prompt": "pack", "responses": [" my", " x"], "ranking": [0, 1]},
]
PROMPTS = [{"prompt": "the", "id": "a"}, {"prompt": "pack my", "id": "b"}, {"prompt": "dog", "id": 7}]

CARD = {
    "id": "nonsense",
    "title": "Nonsense is all you need",
    "authors": ["A. Author", "B. Author"],
    "year": 2020,
    "arxiv": "2001.00001",
    "summary": "Shows nothing.",
    "claim": [
        {"id": "one", "where": "Section 1", "text": "One is one.", "paper": "exact"}
        | {"check": "fuzz_nonsense.claims:one", "scale": "exact", "budget_s": 1.0}
    ],
}
ENTRY_POINTS = """[axon.v1.paper]
nonsense = fuzz_nonsense
[axon.v1.norm]
nonsense = fuzz_nonsense.part:Norm
[axon.v1.command]
nonsense = fuzz_nonsense.part:command
"""


def make(folder: Path) -> None:
    """Write all valid inputs into the current folder, which is `folder`."""
    os.chdir(folder)
    Path("text.txt").write_text(TEXT)
    Path("english.txt").write_text("".join(topics[name] for name in sorted(topics))[:6000])
    np.savez(
        "pictures.npz", images=np.arange(8 * 4 * 4 * 3, dtype=np.uint8).reshape(8, 4, 4, 3), labels=np.arange(8) % 2
    )
    for name, rows in (("rows", ROWS), ("ranks", RANKS), ("prompts", PROMPTS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prompts.txt").write_text("the quick\nbrown\n\nfox\n")
    for name, recipe in RECIPES.items():
        Path(f"{name}.toml").write_text(toml(recipe))
    succeed(
        "train",
        "text.toml",
        "--out",
        "run",
        "--set",
        "trainer.save_every=1",
        "--set",
        "trainer.steps=9",
        "--stop-at",
        "2",
    )
    words = "{type='sentencepiece', vocab_size=360}"
    plain = [
        "--set",
        "model.attention={type='MHA'}",
        "--set",
        f"data.tokenizer={words}",
        "--set",
        "data.path=english.txt",
    ]
    plain += ["--set", "model.context=32"]
    succeed("train", "text.toml", "--out", "words", *plain)
    os.rename("words/model", "model")
    shutil.copytree("model", "bare")
    Path("bare/manifest.json").unlink()  # as somebody does who changes a model on purpose
    succeed("export", "model", "--format", "hf", "--out", "hf")
    succeed("export", "model", "--format", "meta", "--out", "meta")
    for name in ("preferences", "ranks", "pictures", "control", "translation", "vowels"):
        succeed("train", f"{name}.toml", "--out", f"{name}-run")
    _pictures(Path("photos"))
    _plugin(Path("site"))


def succeed(*arguments: str) -> None:
    """Run a command that must succeed."""
    outcome = run(arguments)
    assert outcome.code == 0, outcome.text


def _pictures(folder: Path) -> None:
    from PIL import Image

    for i in range(6):
        place = folder / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        kind = ("png", "gif", "jpg")[i % 3]
        Image.fromarray(np.full((4, 4, 3), 40 * i, dtype=np.uint8)).save(place / f"{i}.{kind}")


def _plugin(folder: Path) -> None:
    package, info = folder / "fuzz_nonsense", folder / "fuzz_nonsense-1.0.dist-info"
    (package / "recipes").mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text('"""Nonsense."""\n')
    (package / "part.py").write_text('"""Nothing."""\n')
    (package / "paper.toml").write_text(toml(CARD))
    (package / "recipes/nonsense.toml").write_text(toml(RECIPES["text"]))
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: fuzz-nonsense\nVersion: 1.0\nSummary: None\n\nText.\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "RECORD").write_text("")
