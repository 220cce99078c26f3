"""Random numbers and tables are made in float32, whatever torch's default dtype is when they are asked for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.generation.api import Request, complete
from axon_core.randomness import Key
from axon_core.text.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "axon_core").rglob("*.py"), *(ROOT / "plugins").glob("*/axon_*/**/*.py")]
DRAWS = {"rand", "randn", "linspace", "logspace", "normal"}


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def half(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_uniform_and_normal_numbers_are_the_same(half: torch.dtype):
    key = Key((0,))
    before = key.uniform((1000,)), key.normal(range(3), (4, 5))
    torch.set_default_dtype(half)
    after = key.uniform((1000,)), key.normal(range(3), (4, 5))
    for one, other in zip(before, after, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)


def test_the_same_tokens_are_drawn(half: torch.dtype):
    """Of 258 tokens that are equally likely; 256 numbers of bfloat16 lie below 1, and most of them near 0."""
    model = MODELS["xllama"].build(vocab_size=258, context=8, dim=8, n_layers=1, n_heads=1).eval()
    model.logits = lambda features: torch.zeros(*features.shape[:-1], 258, dtype=torch.float32)
    requests = [Request(prompt="a", max_new_tokens=8, seed=seed) for seed in range(100)]
    before = [completion.tokens for completion in complete(model, ByteTokenizer(), requests)]
    torch.set_default_dtype(half)
    assert [completion.tokens for completion in complete(model, ByteTokenizer(), requests)] == before


def test_every_draw_and_every_grid_names_its_dtype():
    unnamed = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in DRAWS
        and not any(keyword.arg == "dtype" for keyword in node.keywords)
    ]
    assert not unnamed
