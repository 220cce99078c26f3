"""Small saved models, comparisons, and recipes of trainings of a moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.text import ByteTokenizer, CharTokenizer, Tokenizer
from axon_core.training import Recipe

LINES = [
    {"prompt": f"{a}{b}?", "chosen": "yes" if a < b else "no", "rejected": "no, it is not" if a < b else "y"}
    for a in "abcd"
    for b in "bdeg"
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a small model with random weights, and a tokenizer of bytes or of characters."""

    def save(name: str = "sft", seed: int = 0, characters: str = "", **options: object) -> Path:
        tokenizer: Tokenizer = CharTokenizer(characters) if characters else ByteTokenizer()
        torch.manual_seed(seed)
        MODELS["xllama"].build(
            **{"vocab_size": tokenizer.vocab_size, "context": 24, "dim": 16, "n_layers": 1, "n_heads": 2, **options}
        ).save(tmp_path / name)
        tokenizer.save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    """A file of sixteen comparisons of different lengths."""
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def recipe(saved, comparisons) -> Callable[..., Recipe]:
    """Return what makes the recipe of a training of four steps from the model's table and trainer options."""

    def make(model: dict | None = None, **trainer) -> Recipe:
        settings = {"type": "dpo", "batch_size": 4, "steps": 4, "optimizer": {"type": "adamw", "lr": 3e-3}, **trainer}
        tables = {
            "model": model or {"init": str(saved())},
            "data": {"path": str(comparisons), "held_out": 0.25},
            "trainer": settings,
        }
        return Recipe.of(tables, "tiny", "a test")

    return make
