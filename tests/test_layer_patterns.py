"""A pattern of layers: every fourth sees all and has no positions, the others have windows, one of them experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from axon_core.cli import main
from axon_core.generation import Sampling, decode
from axon_xllama import XLlama

LAYERS = [
    {"every": 4, "attention": "GQA", "rotary": "none"},
    {"every": 2, "feed_forward": {"type": "moe", "n_experts": 4}},
    {"attention": {"type": "SWA", "window": 8}},
]
RECIPE = f"""
[model]
type = "xllama"
context = 32
dim = 32
n_layers = 4
n_heads = 4
hidden_dim = 48
attention = {{ type = "SWA", window = 6, n_kv_heads = 2 }}
layers = {json.dumps(LAYERS).replace(": ", " = ")}
[trainer]
type = "causal_lm"
device = "cpu"
steps = 60
batch_size = 8
optimizer = {{ type = "adamw", lr = 0.01 }}
eval_every = 60
eval_tokens = 512
[data]
path = "text.txt"
tokenizer = "char"
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_it_trains_and_generates_and_loads_again(compiled: bool, tmp_path: Path, short_text: Path, monkeypatch):
    if compiled and not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(short_text.read_bytes())
    (tmp_path / "pattern.toml").write_text(RECIPE)
    assert main(["train", "pattern.toml", "--out", "run", "--set", f"trainer.compile={str(compiled).lower()}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert losses[-1] < 0.8 * losses[0] and any(line["name"] == "auxiliary_balance" for line in lines)

    model = XLlama.load(tmp_path / "run/model").eval()
    kinds = [(type(block.attention).__name__, type(block.feed_forward).__name__) for block in model.blocks]
    window, full = "SlidingWindowAttention", "GroupedQueryAttention"
    assert kinds == [(window, "SwiGLU"), (window, "MixtureOfExperts"), (window, "SwiGLU"), (full, "SwiGLU")]
    prompts = [[5, 6, 7], list(range(1, 13))]  # of which one is padded
    for prompt, found in zip(prompts, greedy(model, prompts, compile=compiled), strict=True):
        assert found == plainly(model, prompt, len(found))


def greedy(model: XLlama, prompts: list[list[int]], compile: bool) -> list[list[int]]:
    steps = decode(model, prompts, range(2), max_new_tokens=18, sampling=Sampling(temperature=0), compile=compile)
    return [list(row) for row in zip(*steps, strict=True)]


@torch.no_grad()
def plainly(model: XLlama, prompt: list[int], count: int) -> list[int]:
    """Return the greedy tokens of one pass over the whole text for each."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]
