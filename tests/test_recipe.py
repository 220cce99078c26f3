"""Recipes: overrides do what they say in any order, and errors name file, place, rule and value."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from axon_core.config import Config, validate
from axon_core.errors import CheckpointError, ConfigError, UnknownKey, UsageError
from axon_core.training.build import build_trainer
from axon_core.training.recipe import Recipe, override

TABLES = {
    "model": {"type": "m", "dim": 8, "attention": {"type": "A", "heads": 2}, "norm": "plain"},
    "trainer": {"type": "t", "steps": 5},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("inf", float("inf")),
        ("some text", "some text"),
        ("$HOME/a=b.txt", "$HOME/a=b.txt"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
    ],
)
def test_a_value_is_toml_or_else_a_string(text: str, value: object):
    assert override({}, [f"trainer.x={text}"]) == {"trainer": {"x": value}}


def test_another_type_drops_the_options_of_the_old_one_in_any_order():
    sets = ["model.attention.type=B", "model.attention.window=4", "model.norm.eps=1", "model.dim=16"]
    expected = {
        "model": {
            "type": "m", "dim": 16, "attention": {"type": "B", "window": 4}, "norm": {"type": "plain", "eps": 1},
        },
        "trainer": TABLES["trainer"],
    }  # fmt: skip
    for order in itertools.permutations(sets):
        assert override(TABLES, order) == expected


def test_the_same_type_keeps_the_options_and_outer_types_come_first():
    assert override(TABLES, ["model.attention.type=A"]) == TABLES
    for order in itertools.permutations(["model.type=n", "model.attention.type=B"]):
        assert override(TABLES, order)["model"] == {"type": "n", "attention": {"type": "B"}}
    assert override(TABLES, ["model.norm.type=other"])["model"]["norm"] == {"type": "other"}
    assert override({}, ["model.norm.type=other"]) == {"model": {"norm": {"type": "other"}}}


def test_overriding_leaves_the_original_alone():
    override(TABLES, ["model.attention.heads=9"])
    assert TABLES["model"]["attention"]["heads"] == 2


@pytest.mark.parametrize("text", ["trainer.steps", "=3", ".a=3", "trainer..steps=1"])
def test_malformed_overrides(text: str):
    with pytest.raises(UsageError, match=r"--set takes table.field=value, got"):
        override(TABLES, [text])


def test_an_override_into_a_value():
    with pytest.raises(UsageError, match=r"--set trainer.steps.x=1: steps is the value 5, not a table"):
        override(TABLES, ["trainer.steps.x=1"])


def test_a_table_that_is_not_toml_is_not_the_name_of_a_part():
    with pytest.raises(UsageError, match=r"--set model.attention=\{type=MQA\}: not a TOML table; .* in quotes"):
        override(TABLES, ["model.attention={type=MQA}"])


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_and_round_trips(tmp_path: Path):
    path = write(tmp_path, 'summary = "s"\n[model]\ntype = "m"\n[trainer]\ntype = "t"\nsteps = 3\n[data]\npath = "x"\n')
    recipe = Recipe.load(path, ["trainer.steps=4"])
    assert (recipe.name, recipe.summary, recipe.trainer.options) == ("mine", "s", {"steps": 4})
    assert Recipe.of(recipe.tables, "mine", "run.json").tables == recipe.tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainer\n", "mine.toml: not valid TOML"),
        ("[model]\n", "mine.toml: trainer: this field is required"),
        ('[trainr]\ntype = "t"\n', r"mine.toml: .*trainr: unknown field 'trainr' \(did you mean 'trainer'\?\)"),
        ("[trainer]\nsteps = 1\n", "mine.toml: trainer.type: this field is required"),
        ("trainer = 5\n", r"mine.toml: trainer: must be a name or a table with a `type`, got 5"),
        ("trainer = 't'\nmodel = 5\n", r"mine.toml: model: must be a valid dictionary, got 5"),
        ('steps = 5\n[trainer]\ntype = "t"\nsteps = 1\n', r"unknown field 'steps' \(did you mean 'trainer.steps'\?\)"),
        ('seed = 5\n[trainer]\ntype = "causal_lm"\n', r"unknown field 'seed' \(did you mean 'trainer.seed'\?\)"),
        ('swap = 5\n[trainer]\ntype = "t"\n', r"unknown field 'swap' \(known: summary, model, trainer, data, "),
    ],
)
def test_errors_name_the_file_and_the_place(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        Recipe.load(write(tmp_path, text))


def test_what_is_known_is_said_once_for_a_table_and_is_that_tables():
    class Inner(Config):
        width: int = 3
        """A width."""

    class Outer(Config):
        inner: Inner = Inner()
        """A table."""
        several: tuple[Inner, ...] = ()
        """Tables."""
        size: int = 0
        """A size."""

    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"a": 1, "sizes": 2, "b": 3, "inner": {"x": 1, "y": 2, "widht": 3}, "several": [{"z": 1}]})
    assert str(caught.value).split("; ") == [
        "inner.widht: unknown field 'widht' (did you mean 'width'?)",
        "sizes: unknown field 'sizes' (did you mean 'size'?)",
        "inner: unknown fields 'x', 'y' (known: width)",
        "several.0.z: unknown field 'z' (known: width)",
        "unknown fields 'a', 'b' (known: inner, several, size)",
    ]


def test_a_recipe_of_another_command_is_sent_there(tmp_path: Path):
    for name in ("align-tiny", "align-exact"):
        with pytest.raises(UsageError) as caught:
            Recipe.load(name)
        assert str(caught.value).endswith(f"use `axon align {name}`") and len(str(caught.value)) < 200
    path = write(tmp_path, '[one]\n[one.trainer]\ntype = "sft"\n[two]\ntype = "report"\n')
    with pytest.raises(UsageError, match=f"use `axon align {path}`"):
        Recipe.load(path)
    path.write_text('command = "convert gqa"\n')
    with pytest.raises(UsageError, match="use `axon 'convert gqa' "):
        Recipe.load(path)


@pytest.mark.parametrize(("recipe", "table"), [("xllama-tiny", "model"), ("ppo-tiny", "model.policy")])
def test_a_saved_model_beside_a_new_ones_sizes_is_one_complaint(recipe: str, table: str, short_text):
    data = [f"data.path={short_text}"] if recipe == "xllama-tiny" else []
    with pytest.raises(ConfigError) as caught:
        build_trainer(Recipe.load(recipe, [f"{table}.init=runs/x", *data]))
    message = str(caught.value)
    assert f"{table}: init names a saved model" in message and "unknown field" not in message
    assert """with --set 'TABLE={init="runs/x"}'""" in message
    with pytest.raises(CheckpointError, match="runs/x is not a run folder"):  # what it advises is understood
        build_trainer(Recipe.load(recipe, [f'{table}={{init="runs/x"}}', *data]))


def test_names_that_are_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot read the recipe .*nowhere.toml: No such file"):
        Recipe.load(tmp_path / "nowhere.toml")
    with pytest.raises(UnknownKey, match="no recipe 'nowhere' is installed"):
        Recipe.load("nowhere")
    with pytest.raises(UnknownKey, match="no trainer 'nowhere' is installed"):
        build_trainer(Recipe.of({"trainer": {"type": "nowhere"}}, "x", "x"))


def test_a_key_that_cannot_be_looked_up_says_where_it_stands():
    overrides = ["model.attention.qk_norm=nonorm"]
    with pytest.raises(UnknownKey) as caught:
        build_trainer(Recipe.load("xllama-tiny", overrides))
    message = str(caught.value)
    assert "model.attention.qk_norm: " in message and "'nonorm'" in message and "xllama-tiny.toml" in message


@pytest.mark.parametrize("key", ["name", "source"])
def test_a_recipe_is_named_after_its_file(key: str):
    with pytest.raises(ConfigError, match=f"{key}: remove it: a recipe is named after its file"):
        Recipe.load("xllama-tiny", [f"{key}=other"])


def test_rules_of_texts_read_as_sentences():
    class Named(Config):
        name: Annotated[str, Field(min_length=1)]
        """A name."""

    with pytest.raises(ConfigError, match="name: must have at least 1 character, got ''"):
        validate(Named, {"name": ""})
    with pytest.raises(ConfigError, match="name: must be a valid string, got 3"):
        validate(Named, {"name": 3})
