"""Exported models in transformers: the demo recipe's, and random ones over attention, norms, sizes and ties."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from axon_core.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from axon_core.training import Recipe, build_trainer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint


def saved(model: XLlama, tokenizer: Tokenizer, folder) -> XLlama:
    """Give a model random weights, gains of its norms included, and save it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 0.2 * noise)
    model.save(folder)
    tokenizer.save(folder)
    return model.eval()


@torch.no_grad()
def check_equal(ours: XLlama, folder, architecture: str) -> None:
    theirs, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not any(loading.values())
    tokens = torch.randint(ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs.eval()(tokens).logits
    difference = (ours(tokens) - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-5


def options(seed: int) -> dict:
    """Return the options of a random model."""
    draw = random.Random(seed)
    n_heads = draw.choice([1, 2, 3, 4, 6])
    head_dim = draw.choice([4, 6, 8, 16])
    own_size = draw.random() < 0.3  # heads that do not make up the features
    attention: dict = {"type": draw.choice(["MHA", "GQA", "MQA"])}
    if attention["type"] == "GQA":
        attention["n_kv_heads"] = draw.choice([k for k in range(1, n_heads + 1) if n_heads % k == 0])
    if own_size:
        attention["head_dim"] = head_dim
    eps = draw.choice([1e-6, 1e-5, 1e-2])
    if seed % 2:
        attention["qk_norm"] = {"type": "rmsnorm", "eps": eps}
    attention["bias"] = draw.choice([False, True])
    if draw.random() < 0.3 and attention["type"] != "MHA" and not seed % 2:
        attention["bias"] = "qkv"
    layout = {"layout": draw.choice(["half", "interleaved"])}
    return {
        "vocab_size": draw.choice([258, 259, 320]),
        "context": draw.choice([16, 64, 300]),
        "dim": 24 if own_size else n_heads * head_dim,
        "n_layers": draw.choice([1, 2, 3]),
        "n_heads": n_heads,
        "hidden_dim": draw.choice([8, 20, 48]),
        "attention": attention,
        "rotary": draw.choice(
            [
                {"type": "rotary", "base": draw.choice([100.0, 10000.0, 1e6])},
                {"type": "linear", "factor": 4.0},
                {"type": "dynamic", "factor": 2.0},
                {"type": "yarn", "factor": 4.0, "beta_fast": 8.0},
                {"type": "yarn", "factor": 4.0, "original_context": 12, "attention_factor": 0.9, "truncate": False},
                {"type": "llama3", "factor": 8.0, "original_context": 8},
            ]
        )
        | layout,
        "norm": {"type": "rmsnorm", "eps": eps},
        "tie_embeddings": draw.random() < 0.5,
    }


def test_the_demo_recipes_model(tmp_path):
    trainer = build_trainer(Recipe.load("xllama-tiny"))
    model = saved(trainer.models["model"], trainer.data.tokenizer, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "hf", format="hf")
    check_equal(model, tmp_path / "hf", "Qwen3ForCausalLM")


@pytest.mark.parametrize("seed", range(40))
def test_random_models(tmp_path, seed):
    model = saved(XLlama.build(**options(seed)), ByteTokenizer(), tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "hf", format="hf")
    attention = model.config.attention.options
    name = "Qwen3" if "qk_norm" in attention else "Qwen2" if attention["bias"] == "qkv" else "Llama"
    check_equal(model, tmp_path / "hf", f"{name}ForCausalLM")


@pytest.mark.parametrize("qk_norm", [None, "rmsnorm"], ids=["Llama", "Qwen3"])
@pytest.mark.parametrize("attention", ["MHA", "GQA", "MQA"])
@torch.no_grad()
def test_exported_imported_and_exported_again(tmp_path, words, attention, qk_norm):
    spec = {"type": attention, "qk_norm": qk_norm} if qk_norm else attention
    model = XLlama.build(vocab_size=400, context=64, dim=32, n_layers=2, n_heads=4, attention=spec)
    saved(model, SentencePieceTokenizer(words.read_bytes(), add_bos=True), tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "hf", format="hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    tokens = torch.randint(400, (2, 40))
    torch.testing.assert_close(XLlama.load(tmp_path / "ours").eval()(tokens), model(tokens), atol=1e-6, rtol=0)
    export_checkpoint(tmp_path / "ours", tmp_path / "again", format="hf")
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
