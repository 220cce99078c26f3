"""Every family of checkpoints beside transformers, both ways: logits, greedy tokens, weights, whole folders."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from axon_core.generation import Sampling, decode
from axon_core.text import Tokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint

TOKENS, ROWS, CONTEXT = 97, 104, 256  # the vocabulary is padded
SIZES = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 24}),
    "mistral with a window": ("mistral", {"sliding_window": 33}),
    "mistral without": ("mistral", {"sliding_window": None, "head_dim": 24}),
    # With yarn or dynamic positions, transformers 5.23 makes no Mixtral whose config leaves `head_dim` open.
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "head_dim": 16}),
}
ROTARY: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
    },
}
GRID = [
    (*case, i % 2 == 0) for i, case in enumerate(product(FAMILIES, ROTARY))
]  # each of both with a tied head, and not


@torch.no_grad()
def theirs_with(family: str, rotary: str, tied: bool) -> PreTrainedModel:
    """A model with random weights, biases and gains included; rows of no token are zeros."""
    torch.manual_seed(0)
    kind, options = FAMILIES[family]
    rope = {"rope_theta": 10_000.0, **ROTARY[rotary]}
    config = AutoConfig.for_model(
        kind, **SIZES, **HEADS, **options, rope_parameters=rope, tie_word_embeddings=tied, initializer_range=0.1
    )
    theirs = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.5)
        elif "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            parameter[TOKENS:] = 0
    return theirs


def write(theirs: PreTrainedModel, folder: Path) -> None:
    """Write the folder as it is published, with a tokenizer of fewer tokens than the model has rows."""
    theirs.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:TOKENS]
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def assert_greedy(scores: torch.Tensor, tokens: list[int]) -> None:
    """Each token has the best score of its place, or one that differs from it by rounding."""
    for at, (row, token) in enumerate(zip(scores, tokens, strict=True)):
        short = row.max() - row[token]
        assert short <= 1e-5 * row.abs().max(), f"token {at} is {token}, and {int(row.argmax())} is better by {short}"


@pytest.mark.parametrize(("family", "rotary", "tied"), GRID)
@torch.no_grad()
def test_a_family_is_that_of_transformers_both_ways(family: str, rotary: str, tied: bool, tmp_path: Path):
    theirs = theirs_with(family, rotary, tied)
    write(theirs, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    ours = XLlama.load(tmp_path / "ours").eval()
    assert Tokenizer.load(tmp_path / "ours").vocab_size == TOKENS and ours.config.vocab_size == ROWS

    tokens = torch.randint(TOKENS, (2, CONTEXT + 44))  # longer than the context, so that `dynamic` rescales
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()

    prompt = tokens[:1, :50]  # longer than the window
    greedy = decode(ours, prompt.tolist(), [0], max_new_tokens=200, sampling=Sampling(temperature=0), vocab_size=TOKENS)
    found = [token for (token,) in greedy]
    assert len(found) == 200
    text = torch.cat(
        (prompt, torch.tensor([found[:-1]])), 1
    )  # in one pass, which says of each token whether it is greedy
    assert_greedy(theirs(text).logits[0, prompt.shape[1] - 1 :], found)

    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(again(tokens).logits, expected)
