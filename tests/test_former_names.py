"""Fields have new names; recipes, overrides and run folders with the former ones are read as if they had the new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from axon_core import TRAINERS, Config, Recipe, Trainer, fit, validate
from axon_core.config import former_names
from axon_core.errors import ConfigError, UsageError
from axon_core.training.build import build_trainer
from axon_core.training.recipe import override
from axon_core.training.run_folder import RunFolder

OLD = {"clip": 0.5, "keep": 7, "final": 0.25}
NEW = {"max_grad_norm": 0.5, "keep_checkpoints": 7, "final_lr_fraction": 0.25}


class Inner(Config):
    renamed: ClassVar = {"old": "new"}
    new: int = 1
    other: int = 2


class Outer(Config):
    renamed: ClassVar = {"before": "inner"}
    inner: Inner = Field(default_factory=lambda: Inner(new=5, other=6))
    rest: dict[str, Any] = Field(default_factory=dict)
    many: tuple[Inner, ...] = ()


class Changed(Outer):
    renamed: ClassVar = {"remainder": "rest"}
    before: int = 0


def test_a_config_reads_former_names_and_knows_only_the_new():
    for name in ("before", "inner"):
        assert validate(Outer, {name: {"old": 3}}) == Outer(
            inner=Inner(new=3, other=6)  # the default's other field stays
        )
    assert validate(Outer, {"many": [{"old": 3}]}).many[0].new == 3
    assert validate(Outer, {"rest": {"old": 3}}).rest == {"old": 3}
    assert "old" not in json.dumps(Inner.model_json_schema())
    with pytest.raises(ConfigError, match=r"new: must be a valid integer.*got 'x'"):
        validate(Inner, {"old": "x"})
    with pytest.raises(ConfigError, match=r"unknown field 'odl' \(known: new, other\)"):
        validate(Inner, {"odl": 1})


def test_subclasses_inherit_former_names_and_may_use_them_for_fields_of_their_own():
    assert former_names((Changed,)) == {"remainder": "rest"}
    assert validate(Changed, {"before": 3, "remainder": {"a": 1}}) == Changed(before=3, rest={"a": 1})


def test_a_field_given_under_both_names_is_an_error_that_names_both():
    for table in ({"old": 1, "new": 1}, {"new": 1, "old": 1}):
        with pytest.raises(ConfigError, match=r"inner\.new: given twice: 'old' is its former name"):
            validate(Outer, {"inner": table})
        with pytest.raises(ValidationError, match="given twice"):
            Inner(**table)
    with pytest.raises(ConfigError, match=r"many.1.*new: given twice: 'old' is its former name"):
        validate(Outer, {"many": [{}, {"old": 1, "new": 1}]})
    both = {"trainer": {"type": "causal_lm", "clip": 1, "max_grad_norm": 1}}
    with pytest.raises(ConfigError, match=r"trainer\.max_grad_norm: given twice: 'clip' is its former name"):
        Recipe.of(both, "r", "file", ["trainer.steps=3"])
    with pytest.raises(UsageError, match="clip is the former name of max_grad_norm, which is set too"):
        override({"trainer": {"type": "causal_lm"}}, ["trainer.clip=1", "trainer.max_grad_norm=1"])


@pytest.mark.parametrize("key", ["causal_lm", "ddpm", "dpo", "sft", "reward", "ppo", "ppo_control", "translation"])
def test_every_trainer_reads_the_former_names_of_the_loops_settings(key: str):
    kind: type[Trainer] = TRAINERS[key]
    assert former_names((kind.Config,)).items() >= dict(zip(OLD, NEW, strict=True)).items()
    config = validate(kind.Config, OLD)
    assert {name: getattr(config, name) for name in NEW} == NEW and config.model_dump().keys().isdisjoint(OLD)


@pytest.mark.parametrize("key", ["ppo", "ppo_control"])
def test_lambda_and_the_clipped_ratio_keep_apart_from_the_gradients_norm(key: str):
    config: Any = validate(TRAINERS[key].Config, {"lam": 0.5, "clip": 2.0, "clip_range": 0.1})
    assert (config.gae_lambda, config.max_grad_norm, config.clip_range) == (0.5, 2.0, 0.1)


def test_overrides_change_an_old_recipe_by_either_name():
    tables = {"a": {"trainer": {"type": "ppo", "lam": 0.5, **OLD}}}
    for name in ("clip", "max_grad_norm"):
        found = override(tables, [f"a.trainer.{name}=3"])["a"]["trainer"]
        assert found == {"type": "ppo", "gae_lambda": 0.5, **NEW, "max_grad_norm": 3}
    assert tables["a"]["trainer"]["clip"] == 0.5
    assert override({}, ["trainer.type=ppo", "trainer.lam=1"]) == {"trainer": {"type": "ppo", "gae_lambda": 1}}


def test_a_swap_keeps_what_has_a_former_name(caplog: pytest.LogCaptureFixture):
    tables = {"trainer": {"type": "ppo", "lam": 0.5, **OLD}}
    found = override(tables, ["trainer.type=causal_lm", "trainer.keep=3"])
    assert found == {"trainer": {"type": "causal_lm", **NEW, "keep_checkpoints": 3}}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "trainer: causal_lm instead of ppo keeps max_grad_norm, final_lr_fraction and drops gae_lambda"
    )


def test_a_field_beside_the_tables_is_sent_to_its_name_of_today():
    with pytest.raises(ConfigError, match=r"unknown field 'clip' \(did you mean 'trainer.max_grad_norm'\?\)"):
        Recipe.of({"trainer": {"type": "causal_lm"}, "clip": 1}, "r", "file")


def test_a_run_from_before_resumes(tmp_path: Path):
    example = TRAINERS["causal_lm"].examples[0]
    tables = {**example, "trainer": {**example["trainer"], "steps": 2, "save_every": 1, "keep": 1, "clip": 0.5}}
    recipe = Recipe.of(tables, "old", "a test")
    assert recipe.trainer.options["clip"] == 0.5
    fit(build_trainer(recipe), tmp_path / "run", recipe={"name": "old", **recipe.tables})
    again = RunFolder.open(tmp_path / "run").recipe(["trainer.steps=4", "trainer.max_grad_norm=0.25"])
    fit(build_trainer(again), tmp_path / "run", resume=True, recipe={"name": "old", **again.tables})
    assert RunFolder.open(tmp_path / "run").checkpoints.names() == ["step-4"]
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["recipe"]["trainer"]["max_grad_norm"] == facts["trainer"]["max_grad_norm"] == 0.25
    assert facts["recipe"]["trainer"].keys().isdisjoint({"clip", "keep"})
