"""Adapters on weights in 4 bits: what they compute, train, save and merge to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from axon_core import MODELS, ByteTokenizer, ConfigError, validate
from axon_core.checkpoint import load_config, load_into, own_tensors
from axon_core.interfaces import Model
from axon_core.nn import QuantizedLinear
from axon_core.training import Recipe, build_trainer, fit
from axon_lora import AdapterSection, linear_maps
from axon_lora.merging import merge_adapter
from axon_qlora import from_nf4, to_nf4

SIZES = {"vocab_size": 258, "context": 32, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
TOKENS = torch.arange(40).view(2, 20)
PAIRS = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no, not"} for i in range(8)]
ROWS = [{"prompt": f"{i}?", "completion": "yes"} for i in range(8)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MODELS.build({"type": "xllama", **SIZES})
    model.save(tmp_path / "base", ByteTokenizer())
    return tmp_path / "base"


def recipe(base: Path, trainer: dict | None = None, data: dict | None = None, **adapter: object) -> Recipe:
    settings = {"type": "causal_lm", "batch_size": 2, "steps": 3, **(trainer or {})}
    if settings["type"] == "causal_lm":
        settings["eval_tokens"] = 300
    tables = {
        "model": {"init": str(base)},
        "trainer": settings,
        "data": data or {"held_out": 0.001},
        "adapter": {"type": "qlora", "rank": 4, **adapter},
    }
    return Recipe.of(tables, "test", "a test")


def trained(plan: Recipe, out: Path, **options: object):
    trainer = build_trainer(plan)
    fit(trainer, out, progress=False, recipe={"name": plan.name, **plan.tables}, **options)
    return trainer


def loaded(folder: Path) -> Model:
    model = load_config(folder, Model)
    load_into(model, folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantization": {"type": "nf4", "double": False}},
        {"quantization": "int4"},
        {"targets": ["q", "down"], "dora": True},
        {"also": ["head"]},
    ],
    ids=str,
)
def test_what_is_saved_reads_as_what_was_trained(base: Path, tmp_path: Path, options: dict):
    """Also the maps that have no adapter are what their 4 bits stand for."""
    trainer = trained(recipe(base, **options), tmp_path / "run")
    model = trainer.models["model"]
    maps = {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    assert {*maps} == {*linear_maps(loaded(base))}
    assert all(not buffer.requires_grad for part in maps.values() for buffer in part.buffers())
    again = loaded(tmp_path / "run" / "model")
    torch.testing.assert_close(again(TOKENS), model(TOKENS), atol=2e-5, rtol=2e-5)
    merged = merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert torch.equal(merged(TOKENS), again(TOKENS))
    assert not [
        name for name in own_tensors(tmp_path / "run" / "model") if "adapter" not in name and name != "head.weight"
    ]


def test_a_model_before_its_first_step_is_the_base_in_four_bits(base: Path):
    trainer = build_trainer(recipe(base, quantization={"type": "nf4", "double": False}))
    plain = loaded(base)
    for part in linear_maps(plain).values():
        codes, scales = to_nf4(part.weight.detach(), 64)
        part.weight.data = from_nf4(codes, scales, part.weight.shape)
    torch.testing.assert_close(trainer.models["model"](TOKENS), plain(TOKENS), atol=1e-5, rtol=1e-5)


def test_a_half_precision_base_merges_in_its_dtype(base: Path, tmp_path: Path):
    loaded(base).bfloat16().save(tmp_path / "half", ByteTokenizer())
    trained(recipe(tmp_path / "half"), tmp_path / "run")
    merged = merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


def test_resuming_is_exact_with_checkpointing_and_eight_bit_moments(base: Path, tmp_path: Path):
    """The embedding is frozen: without care, nothing before a checkpointed layer would require a gradient."""
    settings = {"parallel": {"activation_checkpointing": True}, "optimizer": {"type": "adamw8bit", "lr": 1e-2}}
    plan = recipe(base, settings, dropout=0.1)
    whole = trained(plan, tmp_path / "whole")
    first = dict(whole.models["model"].named_parameters())["blocks.0.attention.qkv.projection.adapter.b.0"]
    assert first.any(), "the first layer was not trained"
    trained(plan, tmp_path / "parts", stop_at=1)
    again = build_trainer(plan, tmp_path / "parts" / "checkpoints" / "step-1" / "model")
    fit(again, tmp_path / "parts", resume=True, progress=False, recipe={"name": plan.name, **plan.tables})
    for file in ("model/model.safetensors", "checkpoints/step-3/tensors.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("trainer", "rows"), [("sft", ROWS), ("dpo", PAIRS), ("reward", PAIRS)], ids=["sft", "dpo", "reward"]
)
def test_trainers_of_rows_train_it(base: Path, tmp_path: Path, trainer: str, rows: list[dict]):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = recipe(base, {"type": trainer, "steps": 2}, {"path": str(tmp_path / "rows.jsonl"), "held_out": 0.25})
    made = trained(plan, tmp_path / "run")
    role = made.models[made.trainable[0]]
    assert any(isinstance(part, QuantizedLinear) for part in role.modules())
    model = loaded(tmp_path / "run" / "model")
    bias = model.bias if trainer == "reward" else 0
    torch.testing.assert_close(model(TOKENS) + bias, role(TOKENS), atol=2e-5, rtol=2e-5)


def test_a_new_model_is_refused_as_its_weights_would_be_rounded_only_when_it_is_saved():
    model = MODELS["xllama"].build(vocab_size=31, context=16, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    section = AdapterSection(validate(AdapterSection.Config, {"type": "qlora", "rank": 2}))
    with pytest.raises(ConfigError, match="qlora is for saved models"):
        section.attach(model)
