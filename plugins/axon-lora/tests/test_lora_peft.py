"""PEFT's files both ways, beside PEFT itself on transformers' models."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from axon_core import CheckpointError
from axon_core.checkpoint import load_config, load_into
from axon_core.training import build_trainer, fit
from axon_lora.merging import merge_adapter
from axon_lora.peft_export import export_peft
from axon_lora.peft_import import import_peft
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint

# PEFT 0.21.2 asks transformers 5.23 for a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TOKENS = torch.arange(60).view(2, 30)
BASES = {
    "llama": {"attention": "MHA"},
    "interleaved": {
        "attention": {"type": "GQA", "n_kv_heads": 2},
        "rotary": {"type": "rotary", "layout": "interleaved"},
    },
    "qwen2": {"attention": {"type": "GQA", "n_kv_heads": 2, "bias": "qkv"}},
    "qwen3": {"attention": {"type": "GQA", "n_kv_heads": 2, "qk_norm": "rmsnorm", "head_dim": 16}},
}
ADAPTERS = {
    "all": {},
    "q, v": {"targets": ["q", "v"], "alpha": 16.0},
    "patterns": {"targets": ["all"], "ranks": {"gate": 2, "blocks.1.attention": 3}, "alphas": {"v": 1.0}},
    "rslora": {"targets": ["attention"], "rslora": True, "alpha": 3.0},
    "dora": {"dora": True},
    "head": {"targets": ["down", "head"], "also": ["embedding"]},
    "one layer": {"targets": ["blocks.1.feed_forward"], "dropout": 0.1},
}


def logits(folder: Path) -> torch.Tensor:
    model = load_config(folder, XLlama)
    load_into(model, folder)
    with torch.no_grad():
        return model(TOKENS)


def theirs(base: Path, adapter: Path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def close(mine: torch.Tensor, right: torch.Tensor) -> None:
    assert ((mine - right).norm() / right.norm()).item() <= 1e-5


def trained(recipe, base: Path, out: Path, **options: object) -> None:
    plan = recipe(base, **options)
    fit(build_trainer(plan), out, progress=False, recipe={"name": plan.name, **plan.tables})


# PEFT then writes weights of the base too.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_peft_computes_the_same_logits_and_what_it_saves_comes_back_bit_for_bit(
    recipe, saved, tmp_path: Path, base: str, adapter: str
):
    folder = saved(**BASES[base])
    trained(recipe, folder, tmp_path / "run", **ADAPTERS[adapter])
    export_checkpoint(folder, tmp_path / "hf", format="hf", notice=print)
    moved = export_peft(tmp_path / "run", tmp_path / "peft")
    model = theirs(tmp_path / "hf", tmp_path / "peft")
    with torch.no_grad():
        right = model(TOKENS).logits
    mine = logits(tmp_path / "run" / "model")
    assert not torch.equal(mine, logits(folder))
    close(mine, right)
    model.save_pretrained(tmp_path / "again")
    ours, back = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "again"))
    assert all(torch.equal(ours[name], back.pop(name)) for name in ours)
    assert {*back} <= {f"base_model.model.{name}.weight" for name in ("model.embed_tokens", "lm_head.base_layer")}
    assert sum(tensor.numel() for tensor in ours.values()) == moved.parameters
    import_peft(tmp_path / "again", folder, tmp_path / "back")
    assert torch.equal(logits(tmp_path / "back"), mine)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8},  # without target_modules: q_proj and v_proj
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": "gaussian"},
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj", "embed_tokens"][:2], "use_rslora": True},
        {"r": 4, "target_modules": ["k_proj", "gate_proj"], "use_dora": True, "lora_dropout": 0.1},
        {
            "r": 4,
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"layers.1.*o_proj": 2},
            "alpha_pattern": {"q_proj": 3},
        },
        {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_that_peft_made_gives_its_logits(saved, tmp_path: Path, options: dict):
    export_checkpoint(saved(), tmp_path / "hf", format="hf", notice=print)
    import_checkpoint(tmp_path / "hf", tmp_path / "imported")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
        right = made(TOKENS).logits
    made.save_pretrained(tmp_path / "peft")
    import_peft(tmp_path / "peft", tmp_path / "imported", tmp_path / "out")
    close(logits(tmp_path / "out"), right)
    merged = merge_adapter(tmp_path / "out", tmp_path / "merged")
    assert torch.equal(merged(TOKENS), logits(tmp_path / "out"))


@pytest.fixture
def adapter(recipe, saved, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and the PEFT folder of an adapter on it."""
    base = saved()
    trained(recipe, base, tmp_path / "run")
    export_peft(tmp_path / "run", tmp_path / "peft")
    return base, tmp_path / "peft"


def _renamed(tensors: dict, old: str, new: str) -> dict:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


_SHAPE = r"must have the shape \(4, 48\)"
WRONG_TENSORS = {
    "without the prefix": (lambda t: _renamed(t, "base_model.model.", ""), "must begin with base_model.model."),
    "of another model": (lambda t: _renamed(t, "q_proj", "query"), r"query.lora_A.weight has no place in the model"),
    "a half missing": (lambda t: {n: x for n, x in t.items() if "1.mlp.up_proj.lora_B" not in n},  "lacks .*up_proj"),
    "another rank": (lambda t: {n: x[:2] if "lora_A" in n else x for n, x in t.items()}, _SHAPE),
    "another base": (lambda t: {n: x[:, :9] if "lora_A" in n else x for n, x in t.items()}, _SHAPE),
    "more layers": (lambda t: t | _renamed(t, "layers.1", "layers.7"), "layers.7.* has no place in the model"),
    "a head": (lambda t: {**t, "base_model.model.lm_head.weight": torch.zeros(258, 32)}, "another head.weight than"),
    "a magnitude": (
        lambda t: {**t, "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(48)},
        "but use_dora is false",
    ),
    "nothing": (lambda t: {}, "has no lora_A and lora_B"),
    "no numbers": (lambda t: {n: x * torch.nan for n, x in t.items()}, "must hold finite numbers"),
    "whole numbers": (lambda t: {n: x.long() for n, x in t.items()}, "must hold finite numbers"),
    "an embedding": (
        lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 258)},
        "adapters of embeddings are not computed here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_a_file_with_foreign_keys_is_refused_by_name(adapter, tmp_path: Path, wrong: str):
    base, folder = adapter
    change, told = WRONG_TENSORS[wrong]
    tensors = change(load_file(folder / "adapter_model.safetensors"))
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=told):
        import_peft(folder, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "IA3"}, 'only LoRA adapters can be imported, and peft_type is "IA3"'),
        ({"bias": "all"}, 'has bias = "all", which is not computed here'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa", which changes the weights of the base'),
        ({"layer_replication": [[0, 2]]}, "has layer_replication"),
        ({"trainable_token_indices": [1]}, "has trainable_token_indices"),
        ({"r": 0}, "r: must be greater than 0"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(adapter, tmp_path: Path, changes: dict, told: str):
    base, folder = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=told):
        import_peft(folder, base, tmp_path / "out")


def test_a_folder_that_is_not_an_adapter(saved, tmp_path: Path):
    base = saved()
    with pytest.raises(CheckpointError, match=r"no PEFT adapter in .*: adapter_config.json is missing"):
        import_peft(tmp_path, base, tmp_path / "out")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"adapter_model.safetensors is missing; its adapter_model.bin is a pickle"
    ):
        import_peft(tmp_path, base, tmp_path / "out")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        import_peft(tmp_path, base, tmp_path / "out")
    with pytest.raises(CheckpointError, match="has no LoRA adapter"):
        export_peft(base, tmp_path / "out")


def test_what_peft_has_no_place_for_is_refused(recipe, saved, tmp_path: Path):
    base = saved()
    trained(recipe, base, tmp_path / "norms", also=["norm"])
    with pytest.raises(CheckpointError, match=r"take only embedding and head trained whole, got norm.weight"):
        export_peft(tmp_path / "norms", tmp_path / "out")
    trained(recipe, tmp_path / "norms", tmp_path / "second")
    with pytest.raises(CheckpointError, match="belongs to an adapted model: merge that one first"):
        export_peft(tmp_path / "second", tmp_path / "out")
