"""Small saved models, and trainings of a moment with an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.text import ByteTokenizer
from axon_core.training import Recipe

LLAMA = {"vocab_size": 258, "context": 32, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a small model with random weights and a tokenizer of bytes."""

    def save(name: str = "base", seed: int = 0, dtype: torch.dtype = torch.float32, **options: object) -> Path:
        torch.manual_seed(seed)
        model = MODELS["xllama"].build(**{**LLAMA, **options})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.to(dtype).save(tmp_path / name, ByteTokenizer())
        return tmp_path / name

    return save


@pytest.fixture
def recipe(saved: Callable[..., Path]) -> Callable[..., Recipe]:
    """Return what makes the recipe of a training of four steps from the adapter's options and the trainer's."""

    def make(base: Path | None = None, trainer: dict | None = None, **adapter: object) -> Recipe:
        settings = {"type": "causal_lm", "batch_size": 2, "steps": 4, "eval_tokens": 500, **(trainer or {})}
        settings.setdefault("optimizer", {"type": "adamw", "lr": 1e-2})
        tables = {
            "model": {"init": str(base or saved())},
            "trainer": settings,
            "data": {"held_out": 0.001},
            "adapter": {"rank": 4, **adapter},
        }
        return Recipe.of(tables, "test", "a test")

    return make
