"""The recipes of `axon align`: stages that fit each other, equal optima, and nothing learned from what is held out."""

import json

import pytest

from axon_core import UsageError
from axon_core.text import read_text
from axon_instructgpt import Pipeline
from axon_instructgpt.bench import _ENUMERABLE

NAMES = ["align-tiny", "align-exact"]


@pytest.fixture(params=NAMES)
def stages(request):
    return Pipeline.load(request.param).stages  # which builds every stage


def mentions(table, text):
    return text in json.dumps(table)


def test_ppo_and_dpo_have_the_same_optimum(stages):
    """π* depends on the reference, on β, and on the noise in whose units both see the reward."""
    ppo, dpo = stages["ppo"], stages["dpo"]
    assert ppo["model"]["policy"]["init"] == dpo["model"]["init"] == stages["report"]["reference"]
    assert ppo["model"]["reward"]["path"] == "@reward"
    assert ppo["trainer"]["kl_coefficient"] == dpo["trainer"]["loss"]["beta"]
    target = dpo["trainer"]["loss"]["beta"] * stages["comparisons"]["noise"]
    assert stages["report"]["target_beta"] == pytest.approx(target)


def test_all_stages_have_the_same_reward_and_length(stages):
    for key in ("reward", "response_tokens"):
        found = [stages[name][key] for name in ("comparisons", "rankings", "report")]
        assert found[0] == found[1] == found[2], key
    length = stages["report"]["response_tokens"]
    assert stages["ppo"]["trainer"]["response_tokens"] == stages["excerpts"]["completion"] == length
    assert stages["excerpts"]["prompt"] + length <= stages["pretrain"]["model"]["context"]


def test_another_seed_is_another_for_every_stage_that_draws(stages, request):
    other = Pipeline.load(request.node.callspec.params["stages"], ["seed=3"]).stages
    seed = lambda table: table["trainer"].get("seed", 0) if "trainer" in table else table.get("seed", 0)  # noqa: E731
    assert {name: seed(table) - 3 for name, table in other.items()} == {n: seed(table) for n, table in stages.items()}
    for name, table in other.items():  # and nothing else changes
        table.get("trainer", table).pop("seed")
        stages[name].get("trainer", stages[name]).pop("seed", None)
    assert other == stages


def test_no_training_sees_what_is_held_out(stages):
    assert stages["rankings"]["prompts"] == "@excerpts/held_out.jsonl"
    assert stages["report"]["prompts"].endswith("/held_out.jsonl")
    for name in ("sft", "comparisons", "reward", "ppo", "dpo"):
        table = stages.get(name, {})
        assert not mentions(table, "held_out.jsonl") and not mentions(table, "@rankings"), name


def test_the_reward_model_sees_each_ranking_at_most_once(stages):
    trainer = stages["reward"]["trainer"]
    assert trainer["steps"] * trainer["batch_size"] <= stages["excerpts"]["train"]


def test_all_responses_of_align_exact_are_enumerated_and_those_of_align_tiny_are_not():
    letters = len(set(read_text()))
    exact, tiny = (letters ** Pipeline.load(name).stages["report"]["response_tokens"] for name in reversed(NAMES))
    assert exact <= _ENUMERABLE < tiny


def test_a_recipe_of_one_training_is_sent_to_its_command():
    with pytest.raises(UsageError, match="use `axon train xllama-tiny`"):
        Pipeline.load("xllama-tiny")
