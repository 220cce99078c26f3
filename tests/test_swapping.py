"""Swapping a part by its name changes that part alone: every option that the new one has too is kept, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from axon_core import ATTENTIONS, MODELS, NORMS, TRAINERS
from axon_core.cli import main
from axon_core.config import Config, validate
from axon_core.errors import ConfigError
from axon_core.registry.spec import Spec
from axon_core.text.records import Ranking
from axon_core.training.optim import AdamW
from axon_core.training.recipe import Recipe, override
from axon_core.training.swapping import alternatives

GQA = {"type": "GQA", "n_kv_heads": 2, "qk_norm": "rmsnorm"}
MUON = {"type": "muon", "lr": 0.02, "betas": [0.8, 0.9], "momentum": 0.9}
UNET = {"type": "unet", "width": 8}


def swapped(tables: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return override(tables, overrides)


@pytest.mark.parametrize("way", ["attention.type={}", "attention={}"])
@pytest.mark.parametrize("key", ["MHA", "MQA"])
def test_the_norm_of_queries_and_keys_stays_whatever_the_attention(way: str, key: str, caplog):
    assert swapped({"attention": GQA}, way.format(key))["attention"] == {"type": key, "qk_norm": "rmsnorm"}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"attention: {key} instead of GQA keeps qk_norm and drops n_kv_heads = 2 (")
    assert ("no option of MHA" if key == "MHA" else "must be less than or equal to 1") in line


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (MUON, "adamw", {"lr": 0.02, "betas": [0.8, 0.9]}),
        ({"type": "adamw", "lr": 0.1, "weight_decay": 0.2}, "muon", {"lr": 0.1, "weight_decay": 0.2}),
        ({"type": "rmsnorm", "eps": 0.1}, "layernorm", {"eps": 0.1}),
        ({"type": "linear", "factor": 2.0, "base": 100.0}, "rotary", {"base": 100.0}),
        ({"type": "linear", "factor": 2.0, "base": 100.0}, "dynamic", {"factor": 2.0, "base": 100.0}),
        ({"type": "linear", "steps": 9, "last": 0.5}, "cosine", {"steps": 9}),  # a key of rotary embeddings, too
        ({"type": "ddim", "eta": 0.5}, "ddpm", {}),
        ({"type": "sigmoid", "beta": 0.3}, "ipo", {"beta": 0.3}),
        ({"type": "sentencepiece", "vocab_size": 500}, "byte", {}),
        ({"type": "causal_lm", "steps": 9, "optimizer": MUON, "prompt": "x"}, "dpo", {"steps": 9, "optimizer": MUON}),
        ({"type": "xllama", "dim": 8, "n_layers": 3, "attention": GQA}, "transformer", {"dim": 8, "attention": GQA}),
    ],
)  # fmt: skip
def test_every_kind_of_part_keeps_what_the_new_one_has_too(old: dict[str, Any], new: str, kept: dict[str, Any], caplog):
    assert swapped({"a": {"b": old}}, f"a.b.type={new}") == {"a": {"b": {"type": new, **kept}}}
    dropped = old.keys() - kept.keys() - {"type"}
    line = "".join(record.getMessage() for record in caplog.records)
    assert all(f"{name} = {old[name]!r}" in line for name in dropped)


def test_a_value_that_is_set_is_neither_missed_nor_lost(caplog):
    sets = ["attention.n_kv_heads=1", "attention.qk_norm.type=layernorm", "attention.type=MQA"]
    expected = {"type": "MQA", "n_kv_heads": 1, "qk_norm": {"type": "layernorm"}}
    for order in (sets, sets[::-1]):
        caplog.clear()
        assert swapped({"attention": GQA}, *order)["attention"] == expected
        assert not caplog.records


def test_a_table_replaces_the_whole_part_and_comes_before_what_is_inside(caplog):
    assert swapped({"attention": GQA}, 'attention={type="MQA"}') == {"attention": {"type": "MQA"}}
    sets = ["model.attention.type=MQA", 'model={type="xllama", attention={type="GQA", qk_norm="rmsnorm"}}']
    for order in (sets, sets[::-1]):
        assert swapped({}, *order)["model"]["attention"] == {"type": "MQA", "qk_norm": "rmsnorm"}


def test_a_part_that_the_recipe_leaves_to_the_model_keeps_the_models_options():
    """The U-Net's attention has a bias that its recipes do not mention; an optimiser's type may be left out."""
    assert MODELS["unet"].Config.model_fields["attention"].default.options == {"bias": True}
    for way in ("model.attention.type=GQA", "model.attention=GQA"):
        assert swapped({"model": UNET}, way)["model"]["attention"] == {"type": "GQA", "bias": True}
    ours = {"trainer": {"type": "causal_lm", "optimizer": {"lr": 0.1, "weight_decay": 0.0}}}
    assert swapped(ours, "trainer.optimizer.type=muon")["trainer"]["optimizer"] == {
        "type": "muon", "lr": 0.1, "weight_decay": 0.0,
    }  # fmt: skip
    given = {"model": {**UNET, "attention": {"qk_norm": "layernorm"}}}
    assert swapped(given, "model.attention.type=GQA")["model"]["attention"] == {
        "type": "GQA", "bias": True, "qk_norm": "layernorm",
    }  # fmt: skip
    deep = {"trainer": {"type": "ddpm", "diffusion": {"parameterisation": "v"}}}
    found = swapped(deep, "trainer.diffusion.schedule.type=cosine")["trainer"]["diffusion"]
    assert found == {"parameterisation": "v", "schedule": {"type": "cosine"}}


def test_a_key_that_is_set_changes_that_key_alone():
    """What a trainer declares of its optimiser, its sampler or its chain stays, key by key."""
    for key in TRAINERS:
        kind = TRAINERS[key].Config
        own = kind()
        for name in kind.model_fields:
            if not isinstance(part := getattr(own, name), BaseModel):
                continue
            for inner in (*type(part).model_fields, *(part.model_extra or {})):
                value = part.model_dump(mode="json")[inner]
                if inner != "type" and isinstance(value, float) and value < 0.5:
                    tables = swapped({"trainer": {"type": key}}, f"trainer.{name}.{inner}={value / 2}")
                    tables["trainer"].pop("type")
                    found = validate(kind, tables["trainer"])
                    assert getattr(found, name) == part.model_copy(update={inner: value / 2}), (key, name, inner)
    rates = [validate(TRAINERS[key].Config, {"optimizer": {"lr": 0.5}}).optimizer for key in ("ppo", "ppo_control")]
    assert rates == [AdamW(lr=0.5, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5)] * 2


def test_a_table_without_a_type_changes_the_part_that_its_owner_declares():
    given = {"channels": 1, "size": 8}
    unet = MODELS.config({**UNET, "groups": 4, "attention": {"qk_norm": "layernorm"}}, **given)
    assert unet.attention == Spec.of({"type": "MHA", "bias": True, "qk_norm": "layernorm"})
    assert MODELS.config({**UNET, "groups": 4, "attention": {"type": "MHA"}}, **given).attention == Spec(
        type="MHA"
    )  # its own
    both = {"type": "transformer", "attention": {"bias": True}, "cross_attention": {"qk_norm": "rmsnorm"}}
    found = MODELS.config(both, vocab_size=9, context=8)
    assert found.attention == Spec.of({"type": "MHA", "bias": True})
    assert found.cross_attention == Spec.of({"type": "MHA", "bias": True, "qk_norm": "rmsnorm"})
    ddpm = TRAINERS["ddpm"].Config
    chain = validate(ddpm, {"diffusion": {"schedule": {"steps": 9}}, "sampling": {"sampler": {"eta": 1.0}}})
    assert chain.diffusion.schedule == Spec.of({"type": "linear", "steps": 9})
    assert chain.sampling.sampler == Spec.of({"type": "ddim", "eta": 1.0})

    class Owner(Config):
        chain: ddpm = ddpm(gamma=5.0, diffusion={"schedule": {"type": "cosine", "steps": 7}})

    made = validate(Owner, {"chain": {"diffusion": {"schedule": {"offset": 0.1}}}}).chain
    assert made.diffusion.schedule == Spec.of({"type": "cosine", "steps": 7, "offset": 0.1})


def test_a_default_that_depends_on_other_fields_is_completed_with_their_validated_values():
    class Small(Config):
        rank: int = 1

    class Owner(Config):
        dim: int
        inner: Small = Small(rank=5)
        part: Spec = Field(default_factory=lambda given: Spec.of({"type": "lora", "rank": given["inner"].rank}))
        norm: Spec = Field(default_factory=lambda given: Spec.of({"type": "norm", "dim": given["dim"]}))

    found = validate(Owner, {"dim": "8", "inner": {"rank": "7"}, "part": {"eps": 0.5}, "norm": {"eps": 0.5}})
    assert found.part == Spec.of({"type": "lora", "rank": 7, "eps": 0.5})
    assert found.norm == Spec.of({"type": "norm", "dim": 8, "eps": 0.5})
    with pytest.raises(ConfigError) as caught:
        validate(Owner, {"norm": {"eps": 0.5}})
    assert (("dim",), "this field is required") in caught.value.problems
    with pytest.raises(ConfigError) as caught:  # a wrong option is told where it stands
        validate(Owner, {"dim": 8, "norm": {"type": 5}, "part": {"eps": 0.5}})
    assert [path for path, _ in caught.value.problems] == [("norm", "type")]


def test_a_table_of_named_parts_and_one_of_several_configs_are_not_completed():
    class Small(Config):
        rank: int = 1

    class Wide(Config):
        width: int = 1

    class Owner(Config):
        parts: dict[str, Spec] = Field(default_factory=lambda: {"a": Spec(type="norm")})
        either: Small | Wide = Small(rank=5)
        facts: dict[str, Any] | Spec = Field(default_factory=dict)
        perhaps: Small | None = Small(rank=5)

    given = {"parts": {"b": {"type": "mha"}}, "either": {"width": 2}, "facts": {"n": 1}, "perhaps": {}}
    found = validate(Owner, given)
    assert found.parts == {"b": Spec(type="mha")} and found.either == Wide(width=2) and found.facts == {"n": 1}
    assert found.perhaps == Small(rank=5)


def test_a_part_of_this_session_and_one_that_nobody_knows(caplog):
    class Deaf(ATTENTIONS["GQA"]):
        class Config(ATTENTIONS["GQA"].Config):
            window: int = 3

    with ATTENTIONS.override(deaf=Deaf):
        assert swapped({"attention": GQA}, "attention.type=deaf") == {"attention": {**GQA, "type": "deaf"}}
    caplog.clear()
    assert swapped({"attention": GQA}, "attention.type=nowhere") == {"attention": {"type": "nowhere"}}
    assert "drops n_kv_heads = 2, qk_norm = 'rmsnorm' (nowhere is unknown)" in caplog.text


def test_a_validator_that_needs_what_only_the_model_knows_hinders_nothing():
    class Needy(NORMS["rmsnorm"]):
        class Config(NORMS["rmsnorm"].Config):
            def model_post_init(self, context: Any) -> None:
                raise KeyError("dim")

    with NORMS.override(needy=Needy):
        assert swapped({"n": {"type": "rmsnorm", "eps": 0.1}}, "n.type=needy") == {"n": {"type": "needy", "eps": 0.1}}


def test_what_was_swapped_is_said_in_one_line_and_recorded(tmp_path: Path, short_text, caplog):
    small = [f"data.path={short_text}", "model.dim=16", "model.context=8", "model.n_layers=1", "trainer.steps=2"]
    words = [word for text in (*small, "model.attention.type=MQA") for word in ("--set", text)]
    assert main(["train", "xllama-tiny", *words, "--out", str(tmp_path / "run")]) == 0
    said = "model.attention: MQA instead of GQA keeps qk_norm and drops n_kv_heads = 2"
    assert caplog.text.count(said) == 1
    recipe = json.loads((tmp_path / "run/run.json").read_text())["recipe"]
    assert recipe["model"]["attention"] == {"type": "MQA", "qk_norm": "rmsnorm"}
    assert recipe["swaps"] == [
        {
            "at": "model.attention",
            "old": "GQA",
            "new": "MQA",
            "kept": {"qk_norm": "rmsnorm"},
            "dropped": {"n_kv_heads": 2},
            "reasons": {"n_kv_heads": "must be less than or equal to 1"},
        }
    ]
    name = recipe.pop("name")
    assert Recipe.of(recipe, name, "run.json", ["trainer.optimizer.type=adamw"]).swaps[0].at == "model.attention"
    again = ["train", "--resume", "--out", str(tmp_path / "run"), "--set", "trainer.steps=3"]
    assert main(again) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["recipe"]["swaps"] == recipe["swaps"]


def test_no_config_replaces_what_every_config_checks():
    """Pydantic looks a validator up by its name, so that a method of the same name would take its place."""
    configs, found = [Config], set()
    while configs:
        found.add(config := configs.pop())
        configs += config.__subclasses__()
    decorators = Config.__pydantic_decorators__
    names = {*decorators.field_validators, *decorators.model_validators}
    assert len(names) == 3 and Ranking in found
    assert not [(config, names & vars(config).keys()) for config in found - {Config} if names & vars(config).keys()]


def test_alternatives_are_what_is_registered_beside_a_part_whose_own_key_is_first():
    tables = {
        "model": {"type": "xllama", "attention": {"type": "MQA"}, "norm": "layernorm"},
        "trainer": {"optimizer": {}},
    }
    assert alternatives(tables, ["model", "attention"])[0] == "MQA"
    assert sorted(alternatives(tables, ["model", "attention"])) == sorted(ATTENTIONS)
    assert alternatives(tables, ["model", "norm"])[0] == "layernorm"  # the short form
    assert sorted(alternatives(tables, ["model", "norm"])) == sorted(NORMS)
    assert alternatives(tables, ["model", "rotary"])[0] == "rotary"  # written nowhere: the model's default
    tables["model"]["attention"] = {"type": "axon-gqa:GQA"}
    found = alternatives(tables, ["model", "attention"])
    assert found[0] == "axon-gqa:GQA" and "GQA" not in found[1:]
    assert alternatives(tables, ["model", "dim"]) == alternatives(tables, ["data", "nothing"]) == ()
    assert alternatives({"model": {"type": "xllama", "attention": "Multihead"}}, ["model", "attention"]) == ()
