"""`axon train --dry-run`: what it says is what training then does, and nothing is written."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from axon_core import TRAINERS
from axon_core.cli import main
from axon_core.documents import to_toml
from axon_core.training.build import build_trainer
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.planning import Plan
from axon_core.training.recipe import Recipe

BY_GRADIENT = sorted(key for key in TRAINERS if not issubclass(TRAINERS[key], DirectTrainer))


def size(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


class Measured:
    """What a training keeps in memory after its first step."""

    @hook
    def step_end(self, fit: Any, metrics: dict[str, float]) -> None:
        state = fit.state
        self.gradients = size(p for p in state.parameters.values())
        self.average = size((state.average or {}).values())
        kept = [value for optimizer in state.optimizers for of in optimizer.state.values() for value in of.values()]
        self.optimizer = size(value for value in kept if isinstance(value, torch.Tensor))
        self.units = fit.units
        # A language model's head, where only its features are asked for: AdamW would keep two moments and a counter.
        given = [p for optimizer in state.optimizers for group in optimizer.param_groups for p in group["params"]]
        idle = [p for p in given if not any(p in optimizer.state for optimizer in state.optimizers)]
        self.idle = sum(2 * p.nbytes + 4 for p in idle)


@pytest.mark.parametrize(
    ("key", "optimizer"), [(key, kind) for key in BY_GRADIENT for kind in ({"type": "adamw"}, {"type": "muon"})]
)
def test_sizes_are_those_of_the_training_itself(key: str, optimizer: dict[str, str]) -> None:
    example = TRAINERS[key].examples[0]
    tables = {**example, "trainer": {**example["trainer"], "optimizer": optimizer, "steps": 1, "ema": 0.9}}
    recipe = Recipe.of(tables, "small", "small.toml")
    trainer = build_trainer(recipe)
    plan = Plan.of(recipe, trainer, Path("run"))
    assert plan.memory.weights == sum(
        size((*model.parameters(), *model.buffers())) for model in trainer.models.values()
    )
    assert {role: model.trained > 0 for role, model in plan.models.items()} == {
        role: role in trainer.trainable for role in trainer.models
    }
    fit(trainer, hooks=[measured := Measured()])
    memory = plan.memory
    assert (memory.gradients, memory.optimizer, memory.average) == (
        measured.gradients,
        measured.optimizer + measured.idle,
        measured.average,
    )
    assert (measured.idle > 0) == (key in ("ppo", "reward"))
    assert plan.units in (None, measured.units)
    again = Recipe.of(tomllib.loads("\n".join(plan.lines())), "small", "small.toml")
    assert build_trainer(again).config == trainer.config
    assert (again.model, again.data) == (recipe.model, recipe.data)


def test_a_dry_run_prints_a_recipe_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    change = ["--set", "model.attention.type=MQA", "--set", "trainer.steps=7"]
    assert main(["train", "xllama-tiny", "--dry-run", *change]) == 0
    text = capsys.readouterr().out
    recipe = tomllib.loads(text)
    assert recipe["model"]["attention"] == {"type": "MQA", "qk_norm": "rmsnorm"}
    assert recipe["trainer"]["steps"] == 7 and recipe["trainer"]["optimizer"]["momentum"] == 0.9
    for said in (
        "# xllama-tiny, into runs/xllama-tiny-1",
        "# model.attention: MQA instead of GQA keeps qk_norm and drops n_kv_heads = 2",
        "# a step: 12 examples, 768 tokens",
        "# 7 steps: 84 examples, 5,376 tokens",
    ):
        assert said in text
    assert main(["train", "xllama-tiny", "--dry-run", "--json", *change, "--out", "here"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = found["models"]["model"]
    assert f"# model model: XLlama, {model['parameters']:,} parameters, trained" in text
    assert model["parameters"] == model["trained"] and found["memory"]["gradients"] == 4 * model["parameters"]
    assert found["memory"]["total"] == sum(found["memory"][part] for part in ("weights", "gradients", "optimizer"))
    assert (found["out"], found["units"], found["swaps"][0]["dropped"]) == ("here", 768, {"n_kv_heads": 2})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xllama-tiny", "--json"], "--json needs --dry-run"),
        (["--resume", "--out", "run", "--dry-run"], "leave out --resume"),
        (["xllama-tiny", "--dry-run", "--set", "trainer.stepz=1"], "unknown field 'stepz'"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_toml_is_read_back_as_it_was() -> None:
    tables = {
        "summary": 'a "b"\n\x7f\x1b é 😀\u202e\\',
        "": {"a b": [1, 2.5, 1e-05, True], "inner": {"x": {}, "y": [{"z": "·"}]}},
        "empty": {},
    }
    assert tomllib.loads(to_toml(tables)) == tables
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None}})) == {"b": {}}
