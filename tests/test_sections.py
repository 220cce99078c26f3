"""Sections of recipes that a plugin adds: what they do to models, what is saved of these, and how they read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from axon_core import MODELS, ByteTokenizer, CheckpointError, ConfigError, UsageError
from axon_core.checkpoint import base_of, load_config, load_into, own_tensors, section_of, whole_weights
from axon_core.cli.train import _continued
from axon_core.interfaces import Model, Overlay
from axon_core.nn.quantization import quantize
from axon_core.training import RECIPE_SECTIONS, Recipe, RecipeSection, Trainer, build_trainer, fit

TOKENS = torch.arange(24).view(2, 12)


class NormsOnly(RecipeSection):
    """Train the gains of norms alone."""

    class Config(RecipeSection.Config):
        """Where."""

        within: str = ""
        """A part of the model."""

    config: Config

    def apply(self, trainer: Trainer) -> None:
        for role in trainer.trainable:
            for model in trainer.models[role].modules():
                if isinstance(model, Model) and model.loaded_from is not None:
                    names = [name for name, p in model.named_parameters() if p.ndim == 1 and self.config.within in name]
                    model.requires_grad_(False)
                    for name in names:
                        model.get_parameter(name).requires_grad_(True)
                    model.overlay = Overlay("norms", self.options, model.loaded_from, frozenset(names))

    def weight_change(self, model: Model, tensors: Mapping[str, Tensor]):
        return lambda name, weight: tensors.get(name, weight)


@pytest.fixture(autouse=True)
def section():
    with RECIPE_SECTIONS.override(norms=NormsOnly):
        yield


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MODELS.build({"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 24}, vocab_size=258)
    model.save(tmp_path / "base", ByteTokenizer())
    return tmp_path / "base"


def recipe(base: Path, **section: object) -> Recipe:
    settings = {"type": "causal_lm", "steps": 3, "batch_size": 2, "eval_tokens": 200}
    tables = {"model": {"init": str(base)}, "trainer": settings, "data": {"held_out": 0.001}, "norms": section}
    return Recipe.of(tables, "test", "a test")


def trained(plan: Recipe, out: Path, **options: object) -> Trainer:
    trainer = build_trainer(plan)
    fit(trainer, out, progress=False, recipe={"name": plan.name, **plan.tables}, **options)
    return trainer


def loaded(folder: Path, quantization: str | None = None) -> Model:
    model = load_config(folder, Model)
    into = quantize(model, quantization) if quantization else model
    load_into(model, folder, into)
    return into


def test_a_table_of_its_name_is_part_of_a_recipe(base: Path):
    plan = recipe(base, within="blocks.0")
    assert plan.sections == {"norms": {"within": "blocks.0"}}
    assert Recipe.of(plan.tables, "test", "again") == plan.model_copy(update={"source": "again"})
    changed = Recipe.of(plan.tables, "test", "a test", ["norms.within=blocks.1"])
    assert changed.sections == {"norms": {"within": "blocks.1"}}


def test_what_is_not_a_table_or_not_its_field_is_named(base: Path):
    with pytest.raises(ConfigError, match="norms: must be a table, got 3"):
        Recipe.of({**recipe(base).tables, "norms": 3}, "test", "a test")
    with pytest.raises(ConfigError, match=r"norms\.wihtin: unknown field 'wihtin' .did you mean 'within'"):
        build_trainer(recipe(base, wihtin="x"))
    with pytest.raises(ConfigError, match=r"unknown field 'norm' .did you mean 'norms'"):
        Recipe.of({"trainer": "causal_lm", "norm": {}}, "test", "a test")
    with pytest.raises(ConfigError, match="sections: remove it"):
        Recipe.of({"trainer": "causal_lm", "sections": {}}, "test", "a test")


def test_only_what_is_trained_is_saved_and_the_model_is_both_together(base: Path, tmp_path: Path):
    trainer = trained(recipe(base), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = sorted(file.keys())
    assert names == sorted(name for name, p in trainer.models["model"].named_parameters() if p.ndim == 1)
    assert {*own_tensors(folder)} == {*names} and base_of(folder) == base
    assert isinstance(section_of(folder), NormsOnly)
    again = loaded(folder)
    assert torch.equal(again(TOKENS), trainer.models["model"](TOKENS))
    assert not torch.equal(again(TOKENS), loaded(base)(TOKENS))
    assert again.overlay is None
    with pytest.raises(CheckpointError, match=r"has only what was trained on top of .*: axon merge"):
        whole_weights(folder)
    quantised = loaded(folder, "int8")
    torch.testing.assert_close(quantised(TOKENS), again(TOKENS), atol=0.1, rtol=0.1)


def test_resuming_is_exact_and_keeps_the_section(base: Path, tmp_path: Path):
    plan = recipe(base)
    trained(plan, tmp_path / "whole")
    trained(plan, tmp_path / "parts", stop_at=1)
    again = build_trainer(plan, tmp_path / "parts" / "checkpoints" / "step-1" / "model")
    fit(again, tmp_path / "parts", resume=True, progress=False, recipe={"name": plan.name, **plan.tables})
    for file in ("model/model.safetensors", "checkpoints/step-3/tensors.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    with pytest.raises(UsageError, match=r"a run keeps its model and data: norms.within was None in .* and is now 'x'"):
        _continued(None, ["norms.within=x"], tmp_path / "parts", True, None)


def test_a_role_of_which_a_part_is_read_keeps_what_is_new_in_it(base: Path, tmp_path: Path):
    """A reward model: the trunk is read from a folder, and the head is new."""
    lines = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tables = {
        "model": {"init": str(base)},
        "trainer": {"type": "reward", "steps": 2, "batch_size": 2},
        "data": {"path": str(tmp_path / "pairs.jsonl"), "held_out": 0.25},
        "norms": {},
    }
    trainer = trained(Recipe.of(tables, "test", "a test"), tmp_path / "run")
    own = own_tensors(tmp_path / "run" / "model")
    assert {"head", "bias"} <= {*own} and not [name for name, tensor in own.items() if tensor.ndim == 2]
    again = loaded(tmp_path / "run" / "model")
    model = trainer.models[trainer.trainable[0]]
    torch.testing.assert_close(again(TOKENS) + again.bias, model(TOKENS) + model.bias)


@pytest.mark.parametrize("damage", ["tensors", "config", "prefix"])
def test_a_damaged_folder_is_refused_by_name(base: Path, tmp_path: Path, damage: str):
    trained(recipe(base), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    if damage == "tensors":
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)
    else:
        facts = json.loads((folder / "config.json").read_text())
        facts["base"]["prefix"] = "trunk." if damage == "prefix" else 3
        (folder / "config.json").write_text(json.dumps(facts))
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged|it has no part trunk"):
        loaded(folder)


def test_a_base_that_changes_or_goes_during_the_training_is_not_taken_for_the_one_that_was_read(
    base: Path, tmp_path: Path
):
    trainer, before = build_trainer(recipe(base)), (base / "config.json").read_bytes()
    other = MODELS.build({"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 24}, vocab_size=258)
    other.save(base)
    trainer.models["model"].save(tmp_path / "changed")
    with pytest.raises(CheckpointError, match="another one now"):
        loaded(tmp_path / "changed")
    base.rename(tmp_path / "moved")
    trainer.models["model"].save(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="which is not there"):
        loaded(tmp_path / "gone")
    facts = json.loads((tmp_path / "gone" / "config.json").read_text())
    assert facts["base"]["fingerprint"] == hashlib.sha256(before).hexdigest()


def test_an_overlay_is_not_saved_over_its_base(base: Path):
    trainer, before = build_trainer(recipe(base)), (base / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="save elsewhere"):
        trainer.models["model"].save(base)
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", ["/" + "x" * 300, "/x" * 5000, "../" * 3 + "y" * 300, "", "\0"])
def test_a_strange_place_of_the_base_is_refused_by_name(base: Path, tmp_path: Path, place: str):
    trained(recipe(base), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    facts = json.loads((folder / "config.json").read_text())
    facts["base"] |= {"folder": place, "relative": place}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="which is not there"):
        loaded(folder)
