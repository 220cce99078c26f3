"""Training with an adapter: every trainer, exact resumption, what is saved, and models read again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors import safe_open

from axon_core import MODELS, TRAINERS, AxonError, CheckpointError, ConfigError, Key, validate
from axon_core.checkpoint import base_of, load_config, load_into, own_tensors
from axon_core.generation import published_sampling
from axon_core.interfaces import Model
from axon_core.training import DirectTrainer, Recipe, build_trainer, fit
from axon_lora import AdapterSection
from axon_lora.merging import merge_adapter


def names_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return sorted(opened.keys())


def trained(recipe: Recipe, out: Path, **options: object):
    trainer = build_trainer(recipe)
    fit(trainer, out, progress=False, recipe={"name": recipe.name, **recipe.tables}, **options)
    return trainer


def loaded(folder: Path) -> Model:
    model = load_config(folder, Model)
    load_into(model, folder)
    return model


@pytest.mark.parametrize(
    "options", [{}, {"dora": True}, {"also": ["head", "norm"], "rslora": True}, {"targets": ["q"]}]
)
def test_only_the_adapter_is_saved_and_the_model_reads_again(recipe, saved, tmp_path: Path, options: dict):
    base = saved()
    before = loaded(base)
    trainer = trained(recipe(base, **options), tmp_path / "run")
    model, folder = trainer.models["model"], tmp_path / "run" / "model"
    own = names_in(folder / "model.safetensors")
    whole = {"head.weight", "norm.weight"} if "also" in options else set()
    assert {name for name in own if ".adapter." not in name} == whole
    assert base_of(folder) == base
    state = names_in(tmp_path / "run" / "checkpoints" / "step-4" / "tensors.safetensors")
    assert not [name for name in state if name.endswith("projection.weight")]
    again, tokens = loaded(folder), torch.arange(40).view(2, 20)
    torch.testing.assert_close(again(tokens), model(tokens), atol=2e-5, rtol=2e-5)
    assert not torch.equal(again(tokens), before(tokens))
    merged = merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert torch.equal(merged(tokens), again(tokens))
    assert torch.equal(loaded(tmp_path / "merged")(tokens), again(tokens))
    assert base_of(tmp_path / "merged") is None


def test_resuming_is_exact(recipe, saved, tmp_path: Path):
    """Two steps, then two more in another process's place, equal four: adapters, moments, and what is exported."""
    base = saved()
    plan = recipe(base, dropout=0.2, dora=True)
    trained(plan, tmp_path / "whole")
    trained(plan, tmp_path / "parts", stop_at=2)
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-2" / "model"
    trainer = build_trainer(plan, checkpoint)
    fit(trainer, tmp_path / "parts", resume=True, progress=False, recipe={"name": plan.name, **plan.tables})
    for file in ("model/model.safetensors", "checkpoints/step-4/tensors.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


def test_a_killed_training_resumes_exactly(recipe, saved, tmp_path: Path):
    plan = recipe(saved(), trainer={"steps": 60, "save_every": 1})
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan.tables))
    command = [sys.executable, "-m", "axon_core", "train", str(tmp_path / "plan.toml"), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    running = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "killed" / "checkpoints" / "step-5").exists():
        assert running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    subprocess.run([*command, str(tmp_path / "killed"), "--resume"], check=True, capture_output=True)
    for file in ("model/model.safetensors", "checkpoints/step-60/tensors.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_the_sampling_that_came_with_the_base_is_kept(recipe, saved, tmp_path: Path):
    base = saved()
    (base / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": true}')
    trained(recipe(base), tmp_path / "run")
    merge_adapter(tmp_path / "run", tmp_path / "merged")
    for folder in (tmp_path / "run" / "model", tmp_path / "merged"):
        assert published_sampling(folder) == {"temperature": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(recipe, saved, tmp_path: Path, strategy: str):
    plan = recipe(saved(), {"batch_size": 4, "parallel": {"strategy": strategy}}, dropout=0.1)
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan.tables))
    command = [sys.executable, "-m", "axon_core", "train", str(tmp_path / "plan.toml"), "--out"]
    subprocess.run([*command, str(tmp_path / "one")], check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "two"), "--nproc", "2"], check=True, capture_output=True)
    one, two = (own_tensors(tmp_path / name / "model") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


def test_the_base_is_bit_for_bit_what_it_was(recipe, saved, tmp_path: Path):
    base = saved()
    before = (base / "model.safetensors").read_bytes()
    trainer = trained(recipe(base), tmp_path / "run")
    assert (base / "model.safetensors").read_bytes() == before
    frozen = loaded(base).state_dict()
    own = trainer.models["model"].state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in frozen.items())


def test_an_adapter_may_be_trained_on_an_adapted_model(recipe, saved, tmp_path: Path):
    base = saved()
    trained(recipe(base), tmp_path / "first")
    trainer = trained(recipe(tmp_path / "first", rank=2), tmp_path / "second")
    tokens = torch.arange(30).view(1, 30)
    again = loaded(tmp_path / "second" / "model")
    torch.testing.assert_close(again(tokens), trainer.models["model"](tokens), atol=2e-5, rtol=2e-5)
    assert base_of(tmp_path / "second" / "model") == tmp_path / "first" / "model"


def test_a_base_that_is_gone_moved_or_changed(recipe, saved, tmp_path: Path):
    (tmp_path / "a").mkdir()
    base = Path(shutil.move(saved(), tmp_path / "a" / "base"))
    trained(recipe(base), tmp_path / "a" / "run")
    tokens = torch.arange(10).view(1, 10)
    before = loaded(tmp_path / "a" / "run" / "model")(tokens)
    shutil.move(tmp_path / "a", tmp_path / "b")  # both together
    assert torch.equal(loaded(tmp_path / "b" / "run" / "model")(tokens), before)
    shutil.move(tmp_path / "b" / "base", tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"adds to the model in .*, which is not there; move it back"):
        loaded(tmp_path / "b" / "run" / "model")
    shutil.move(saved("other", seed=1), tmp_path / "b" / "base")
    with pytest.raises(CheckpointError, match="which is another one now; restore that model"):
        loaded(tmp_path / "b" / "run" / "model")


def test_a_model_with_an_adapter_is_not_exported_as_if_it_were_whole(recipe, saved, tmp_path: Path):
    from axon_xllama.checkpoints import export_checkpoint

    trained(recipe(saved()), tmp_path / "run")
    with pytest.raises(CheckpointError, match="write the whole model first: axon merge"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", format="hf")
    with pytest.raises(CheckpointError, match="is whole already: it has no adapter to merge"):
        merge_adapter(tmp_path / "base", tmp_path / "out")


def test_a_half_precision_base_stays_so_on_disk_and_merges_in_its_dtype(recipe, saved, tmp_path: Path):
    base = saved(dtype=torch.bfloat16)
    trained(recipe(base), tmp_path / "run")
    merged = merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


def test_unknown_sections_and_wrong_tables_are_named(recipe, saved):
    with pytest.raises(ConfigError, match=r"unknown field 'adaptor' .did you mean 'adapter'"):
        Recipe.of({"trainer": "causal_lm", "adaptor": {}}, "test", "a test")
    with pytest.raises(ConfigError, match=r"adapter\.targets: must name linear maps, got 'w_q'"):
        build_trainer(recipe(saved(), targets=["w_q"]))
    with pytest.raises(AxonError, match=r"adapter.*lora"):
        build_trainer(recipe(saved(), type="lorra"))


def test_the_recipe_lowers_the_held_out_loss_of_a_model_like_the_demos(tmp_path: Path):
    sizes = ["model.dim=64", "model.n_layers=2", "model.hidden_dim=128", "trainer.steps=150", "trainer.eval_tokens=500"]
    trained(Recipe.load("xllama-tiny", sizes), tmp_path / "base")
    plan = Recipe.load("lora-tiny", [f"model.init='{tmp_path / 'base'}'", "trainer.steps=40", "trainer.warmup=4"])
    before = build_trainer(plan).evaluate()["loss"]
    after = trained(plan, tmp_path / "run").evaluate()["loss"]
    assert after < 0.7 * before, (before, after)


BY_GRADIENTS = [name for name in TRAINERS if not issubclass(TRAINERS[name], DirectTrainer)]
EVERY = [(name, i) for name in BY_GRADIENTS for i in range(len(TRAINERS[name].examples))]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_every_trainer_trains_adapters(name: str, variant: int, tmp_path: Path):
    """Whatever the trainer and its models: only adapters, and what is new in a role, change; resuming is exact."""
    tables = dict(TRAINERS[name].examples[variant])
    settings = {**tables["trainer"], "steps": 2, "type": name}
    plan = Recipe.of({**tables, "trainer": settings, "adapter": {"rank": 1}}, "test", "a test")
    trainer = _moved(build_trainer(plan))
    frozen = {
        f"{role}.{key}": tensor.clone()
        for role in trainer.trainable
        for key, tensor in trainer.models[role].named_parameters()
        if not tensor.requires_grad
    }
    assert frozen, "nothing is frozen"
    fit(trainer, tmp_path / "whole", progress=False, recipe={"name": plan.name, **plan.tables})
    after = {f"{role}.{k}": t for role in trainer.trainable for k, t in trainer.models[role].named_parameters()}
    assert all(torch.equal(after[key], tensor) for key, tensor in frozen.items())
    assert any(".adapter.b" in key and tensor.any() for key, tensor in after.items())
    first = _moved(build_trainer(plan))
    fit(first, tmp_path / "parts", stop_at=1, progress=False, recipe={"name": plan.name, **plan.tables})
    again = build_trainer(plan, tmp_path / "parts" / "checkpoints" / "step-1" / "model")
    fit(again, tmp_path / "parts", resume=True, progress=False, recipe={"name": plan.name, **plan.tables})
    state = "checkpoints/step-2/tensors.safetensors"
    assert (tmp_path / "whole" / state).read_bytes() == (tmp_path / "parts" / state).read_bytes()
    assert _exports(tmp_path / "whole") == _exports(tmp_path / "parts")


def _moved(trainer):
    """Move a new model's weights: some begin with zeros at their end, which no gradient passes."""
    for role in trainer.trainable:
        if any(getattr(part, "loaded_from", None) for part in trainer.models[role].modules()):
            continue
        for name, parameter in trainer.models[role].named_parameters():
            if not parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=Key((1, role, name)).generator()))
    return trainer


def _exports(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "model").rglob("*.safetensors"))}


def test_parts_trained_whole_have_the_dtype_of_a_half_precision_base(recipe, saved, tmp_path: Path):
    base = saved(dtype=torch.bfloat16)
    trained(recipe(base, also=["head", "embedding", "norm"]), tmp_path / "run")
    model = loaded(tmp_path / "run" / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.arange(8).view(1, 8)).isfinite().all()


def test_a_new_model_is_saved_with_the_parts_that_are_trained_whole(tmp_path: Path):
    torch.manual_seed(0)
    model = MODELS["xllama"].build(vocab_size=31, context=16, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    AdapterSection(validate(AdapterSection.Config, {"rank": 2, "also": ["head", "norm"]})).attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save(tmp_path / "model")
    tokens = torch.arange(8).view(1, 8)
    torch.testing.assert_close(loaded(tmp_path / "model")(tokens), model(tokens))
