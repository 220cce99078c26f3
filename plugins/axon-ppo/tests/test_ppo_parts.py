"""What `ppo` is made of: saved policies, rewards, auxiliary losses and prompts, and what it refuses."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the small models that several test modules share
from small_models import collected, llama, value_of, vowels

from axon_core import (
    ByteTokenizer,
    CheckpointError,
    ConfigError,
    ContextError,
    DataError,
    TrainingError,
    UsageError,
    fit,
)
from axon_core.training import Recipe, build_trainer, evaluate
from axon_ppo import AUXILIARY_LOSSES, ModelReward, PPOTrainer, PromptData, ValueModel


def test_a_registered_auxiliary_loss_is_built_from_the_recipe():
    class Nothing:
        class Config(__import__("axon_core").Config):
            weight: float = 1.0

        def __init__(self, config, tokenizer, context, seed):
            self.given = (config.weight, tokenizer.vocab_size, context, seed)

        def batch(self, step, size):
            return {"row": torch.zeros(size)}

        def counts(self, data):
            return {"nothing": 1.0 * len(data["row"])}

        def loss(self, policy, data):
            return {"nothing": data["row"].sum()}

    tables = copy.deepcopy(dict(PPOTrainer.examples[0]))
    tables["model"]["auxiliary"] = {"type": "nothing", "weight": 2.0}
    with AUXILIARY_LOSSES.override(nothing=Nothing):
        trainer = build_trainer(Recipe.of(tables, "t", "a test"))
    assert trainer.auxiliary.given == (2.0, 258, 16, 0)
    assert "auxiliary/row" in collected(trainer)


def test_a_saved_policy_is_gone_on_from_and_is_the_reference(ragged, tmp_path):
    start = ragged()
    start.policy.save(tmp_path / "sft")
    start.data.tokenizer.save(tmp_path / "sft")
    tables = {
        "model": {"policy": {"init": str(tmp_path / "sft")}, "reward": {"type": "regex", "pattern": "[ae]"}},
        "trainer": {"type": "ppo", "batch_size": 4, "response_tokens": 3, "steps": 2},
        "data": {"prompts": ["ab", "cd", "e", "bb"], "held_out": 0.5},
    }
    trainer = build_trainer(Recipe.of(tables, "t", "a test"))
    for model in (trainer.policy, trainer.reference):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.policy.parameters(), strict=True))
    fit(trainer, tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.reference.parameters(), start.policy.parameters(), strict=True)
    )
    assert not torch.equal(trainer.policy.head.weight, start.policy.head.weight)
    metrics = evaluate(trainer)
    assert metrics["loss"] == pytest.approx(0.05 * metrics["kl"] - metrics["score"])
    assert evaluate(trainer) == metrics and metrics["length"] == 3
    assert trainer.sample().startswith("e")


def test_a_reward_model_is_a_frozen_role_that_scores_the_end(make, letters):
    tokenizer = letters("abcde.")
    judge = value_of(llama(6, seed=5))
    trainer = make(llama(6), tokenizer, ["ab", "c"], ModelReward.of(judge, tokenizer), batch_size=4, response_tokens=3)
    assert trainer.models["reward"] is judge and not any(p.requires_grad for p in judge.parameters())
    found = trainer.reward(["ab", "c"], ["d", "eab"])
    for prompt, response, score in zip(["ab", "c"], ["d.", "eab."], found, strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt + response)])
        assert score == pytest.approx(judge(tokens)[0, -1].item(), abs=1e-6)


def test_a_reward_model_sees_no_end_where_a_response_was_cut_off(make, table):
    tokenizer, judge, policy = ByteTokenizer(), value_of(llama(258, seed=5)), table.build(vocab_size=258, context=12)
    with torch.no_grad():
        policy.table.weight.fill_(-30)
        policy.table.weight[:, [97, 98, tokenizer.eos]] = 1.0  # a, b or the end
    reward = ModelReward.of(judge, tokenizer)
    options = {"batch_size": 16, "response_tokens": 3, "unfinished_penalty": 0.0}
    data = collected(make(policy, tokenizer, ["ab", "ba"], reward, value=value_of(llama(258)), **options))
    seen = set()
    for row, valid, score in zip(data["tokens"], data["valid"], data["score"].tolist(), strict=True):
        tokens = row[valid]
        seen.add(tokens[-1].item() == tokenizer.eos)
        assert score == pytest.approx(judge(tokens[None])[0, -1].item(), abs=1e-6)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [math.nan if "c" in x else 0.0 for x in p], r"line 2 of p \('bc'\).* is nan"),
        (lambda p, r: [1 / (0 if "c" in x else 1) for x in p], r"line 2 of p \('bc'\).* failed: ZeroDivisionError"),
        (lambda p, r: [0.0], "one number for each response, got 1 for 4"),
    ],
)
def test_a_reward_that_fails_names_the_record_and_writes_nothing(reward, message, make, letters, tmp_path):
    trainer = make(llama(6), letters("abcde."), ["a", "bc"], reward, batch_size=4, response_tokens=2, steps=1)
    with pytest.raises(TrainingError, match=message):
        fit(trainer, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*")) and not (tmp_path / "run" / "model").exists()


def test_roles_that_do_not_fit_are_refused(make, letters):
    tokenizer = letters("abcde.")

    def build(**parts):
        return make(llama(6), tokenizer, ["ab", "abcde"], parts.pop("reward", vowels), response_tokens=3, **parts)

    with pytest.raises(UsageError, match="one vocabulary, got 6 tokens for the policy and 7 for the reference"):
        build(reference=llama(7))
    with pytest.raises(UsageError, match="7 for the value"):
        build(value=ValueModel(llama(7)))
    with pytest.raises(UsageError, match="token 1 is b'b' in one and b'x' in the other"):
        build(reward=ModelReward.of(value_of(llama(6)), letters("axcde.")))
    with pytest.raises(
        ContextError, match="line 2 of p has 5 tokens and its response up to 8, but the policy's context is 12"
    ):
        make(llama(6), tokenizer, ["ab", "abcde"], vowels, response_tokens=8)
    with pytest.raises(ContextError, match="the reference's context is 7"):
        build(reference=llama(6, context=7))
    with pytest.raises(CheckpointError, match="tokenizer has 7 tokens, but the model's vocabulary has only 6"):
        make(llama(6), letters("abcdef."), ["ab"], vowels)


def test_prompts_that_cannot_be_used_are_named(letters, tmp_path):
    tables = copy.deepcopy(dict(PPOTrainer.examples[0]))
    file = tmp_path / "prompts.jsonl"
    for text, message in (
        ('{"prompt": "a", "completion": "b"}\n{"prompt": ""}\n', "line 2 of .* is not a valid prompt"),
        ('{"completion": "b"}\n', "line 1 of .* is not a valid prompt: prompt: this field is required"),
        ('{"prompt": "a"}\n{"prompt": "a very long prompt"}\n', "line 2 of .* has 18 tokens"),
        ("", "has no records"),
    ):
        file.write_text(text)
        tables["data"] = {"path": str(file)}
        with pytest.raises((DataError, ContextError), match=message):
            build_trainer(Recipe.of(tables, "t", "a test"))
    with pytest.raises(DataError, match="b: character 'x'"):
        PromptData.of([("a", "ab"), ("b", "x")], letters("ab."))
    with pytest.raises(ConfigError, match="either path"):
        build_trainer(Recipe.of({**tables, "data": {}}, "t", "a test"))
    with pytest.raises(ConfigError, match="minibatches must divide batch_size, got 3 for 4"):
        build_trainer(Recipe.of(tables, "t", "a test", ["trainer.minibatches=3"]))
