"""Bad input to the commands: the record is named with its file and line, and nothing is left half-written."""

import json
import math

import pytest
import torch

from axon_core import MODELS, Config
from axon_core.cli import main
from axon_core.registry import registry_of
from axon_core.text import ByteTokenizer, CharTokenizer
from axon_instructgpt import RewardModel

LETTERS = "abcdefgh"
LONG = "a" * 30

# Trainer: a good line, and bad ones with what the message must say of each.
RECORDS = {
    "sft": (
        '{"prompt": "a", "completion": "b"}',
        {
            '{"prompt": "", "completion": "b"}': "prompt",
            '{"prompt": "a", "completion": ""}': "completion",
            '{"prompt": "a", "prompt": "b", "completion": "c"}': "the field 'prompt' twice",
            '{"prompt": "a", "completions": "b"}': "completion",
            '{"prompt": "a", "completion": 1}': "completion",
            f'{{"prompt": "{LONG}", "completion": "b"}}': "context is 24",
            '{"prompt": "a", "completion": ': "is not JSON",
            '["a", "b"]': "must be a JSON object",
        },
    ),
    "sft of dialogues": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        {
            '{"messages": [{"role": "user", "content": "a", "content": "b"}]}': "the field 'content' twice",
            '{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}': "content",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}': "take turns",
        },
    ),
    "dpo": (
        '{"prompt": "a", "chosen": "b", "rejected": "c"}',
        {
            '{"prompt": "a", "chosen": "b", "rejected": "b"}': "chosen and rejected must differ",
            '{"prompt": "a", "chosen": "b", "rejected": ""}': "rejected",
            '{"prompt": "a", "chosen": "b", "chosen": "d", "rejected": "c"}': "the field 'chosen' twice",
            f'{{"prompt": "{LONG}", "chosen": "b", "rejected": "c"}}': "at most 24 tokens",
        },
    ),
    "reward": (
        '{"prompt": "a", "chosen": "b", "rejected": "c"}',
        {
            '{"prompt": "a", "chosen": "b", "rejected": "b"}': "chosen and rejected must differ",
            '{"prompt": "", "chosen": "b", "rejected": "c"}': "prompt",
            '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}': "NaN",
            '{"prompt": "a", "chosen": "b", "rejected": "c", "rejected": "d"}': "the field 'rejected' twice",
            f'{{"prompt": "{LONG}", "chosen": "b", "rejected": "c"}}': "at most 24 tokens",
        },
    ),
    "reward of rankings": (
        '{"prompt": "a", "responses": ["b", "c", "d"], "ranking": [2, 0, 1]}',
        {
            '{"prompt": "a", "responses": ["b", "b"], "ranking": [0, 1]}': "responses must differ",
            '{"prompt": "a", "responses": ["b", ""], "ranking": [0, 1]}': "responses",
            '{"prompt": "a", "responses": ["b", "c"], "ranking": [0, 0]}': "ranking must list each",
            f'{{"prompt": "a", "responses": ["b", "{LONG}"], "ranking": [0, 1]}}': "at most 24 tokens",
        },
    ),
    "ppo": (
        '{"prompt": "a"}',
        {
            '{"prompt": ""}': "prompt",
            '{"completion": "a"}': "prompt",
            '{"prompt": "a", "prompt": "b"}': "the field 'prompt' twice",
            f'{{"prompt": "{LONG}"}}': "the policy's context is 24",
        },
    ),
}
CASES = [(trainer, line, words) for trainer, (_, bad) in RECORDS.items() for line, words in bad.items()]


class Fails:
    """A reward that fails at one prompt, in one way or another."""

    class Config(Config):
        """How."""

        how: str

    def __init__(self, config):
        self.how = config.how

    def __call__(self, prompts, responses):
        if self.how == "raises" and "bb" in prompts:
            raise KeyError("no such prompt")
        return [math.nan if prompt == "bb" else 1.0 for prompt in prompts]


def save(folder, characters="", *, reward=False, context=24):
    """Save a small model and its tokenizer."""
    tokenizer = CharTokenizer(characters) if characters else ByteTokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "context": context, "dim": 16, "n_layers": 1, "n_heads": 2}
    model = MODELS.build("xllama", **sizes)
    (RewardModel.of(model) if reward else model).save(folder)
    tokenizer.save(folder)
    return str(folder)


@pytest.fixture
def train(tmp_path, capsys):
    """Return what runs `axon train` on lines of data with a saved model, and returns what it says."""

    def run(trainer, lines, model=None, data=None, **options):
        kind = trainer.split()[0]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        init = {"init": save(tmp_path / "start")}
        tables = {
            "model": {"policy": init, "reward": {"type": "regex", "pattern": "a"}} if kind == "ppo" else init,
            "data": {"path": str(tmp_path / "data.jsonl"), "held_out": 0.4, **(data or {})},
            "trainer": {"type": kind, "steps": 1, "batch_size": 4, **options},
        }
        tables["model"] |= model or {}
        recipe = tmp_path / "recipe.toml"
        recipe.write_text("".join(toml(name, table) for name, table in tables.items()))
        code = main(["train", str(recipe), "--out", str(tmp_path / "out")])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return run


def toml(name, table):
    """Write a table whose values are written in TOML as in JSON, or are tables of such."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    rest = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if key not in inner)
    return f"[{name}]\n{rest}" + "".join(toml(f"{name}.{key}", value) for key, value in inner.items())


@pytest.mark.parametrize(("trainer", "line", "words"), CASES)
def test_a_bad_record_is_named_before_anything_is_written(train, tmp_path, trainer, line, words):
    good = RECORDS[trainer][0]
    options = {"response_tokens": 2} if trainer == "ppo" else {}
    code, err = train(trainer, [good, line, good], **options)
    assert code in (1, 2) and f"line 2 of {tmp_path / 'data.jsonl'}" in err and words in err, err
    assert not (tmp_path / "out").exists()


def test_a_bad_demonstration_of_the_reward_trainer_is_named(train, tmp_path):
    good, _ = RECORDS["reward"]
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    code, err = train("reward", [good] * 3, data={"demonstrations": str(tmp_path / "demonstrations.jsonl")})
    assert code == 1 and f"line 2 of {tmp_path / 'demonstrations.jsonl'}" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("how", "words"), [("nan", "is nan; it must be a finite number"), ("raises", "KeyError")])
def test_a_reward_that_fails_names_the_prompt_and_leaves_no_checkpoint(train, tmp_path, how, words):
    lines = ['{"prompt": "a"}', '{"prompt": "bb"}', '{"prompt": "ccc"}']
    with registry_of("reward").override(fails=Fails):
        model = {"reward": {"type": "fails", "how": how}}
        code, err = train("ppo", lines, model, {"held_out": 0.0}, response_tokens=2)
    assert code == 1 and f"line 2 of {tmp_path / 'data.jsonl'} ('bb')" in err and words in err, err
    assert not list(tmp_path.glob("out/checkpoints/*")) and not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(("how", "words"), [("nan", "is nan; it must be a finite number"), ("raises", "KeyError")])
def test_a_stage_whose_reward_fails_names_the_prompt_and_writes_nothing(tmp_path, capsys, how, words):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}\n{"prompt": "bb"}\n')
    stage = {"type": "comparisons", "policy": save(tmp_path / "start"), "prompts": str(tmp_path / "data.jsonl")}
    stage |= {"reward": {"type": "fails", "how": how}, "response_tokens": 4}
    (tmp_path / "recipe.toml").write_text(toml("comparisons", stage))
    with registry_of("reward").override(fails=Fails):
        assert main(["align", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert f"line 2 of {tmp_path / 'data.jsonl'} ('bb')" in err and words in err and "Traceback" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["align.json"]


def test_a_pipeline_with_a_bad_record_goes_on_once_it_is_mended(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    good, bad = '{"prompt": "a", "chosen": "b", "rejected": "c"}', '{"prompt": "a", "chosen": "b", "rejected": "b"}'
    tables = {
        "model": {"init": save(tmp_path / "start")},
        "data": {"path": str(data), "held_out": 0.4},
        "trainer": {"type": "dpo", "steps": 1, "batch_size": 2},
    }
    (tmp_path / "recipe.toml").write_text(toml("dpo", tables))
    command = ["align", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    data.write_text(f"{good}\n{bad}\n{good}\n")
    assert main(command) == 1
    err = capsys.readouterr().err
    assert f"line 2 of {data}" in err and "continue with: axon align" in err and "Traceback" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["align.json"]
    data.write_text(f"{good}\n{good}\n{good}\n")
    assert main(command) == 0
    assert (tmp_path / "out" / "dpo" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("role", ["reference", "value", "reward"])
def test_models_with_other_tokens_are_refused(train, tmp_path, role):
    other = save(tmp_path / "other", LETTERS, reward=role == "reward")
    model = {
        "reference": {"reference": other},
        "value": {"value": {"init": other}},
        "reward": {"reward": {"type": "reward_model", "path": other}},
    }[role]
    trainer = "dpo" if role == "reference" else "ppo"
    code, err = train(trainer, [RECORDS[trainer][0]] * 3, model, **({"response_tokens": 2} if trainer == "ppo" else {}))
    assert code == 2 and role in err and "258" in err and "8" in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["value", "reward"])
def test_a_prompt_too_long_for_another_role_is_named(train, tmp_path, role):
    other = save(tmp_path / "other", reward=True, context=8)
    model = {"value": {"value": {"init": other}}, "reward": {"reward": {"type": "reward_model", "path": other}}}[role]
    lines = ['{"prompt": "a"}', '{"prompt": "abcdefg"}', '{"prompt": "a"}']
    code, err = train("ppo", lines, model, response_tokens=2)
    assert code == 2 and f"line 2 of {tmp_path / 'data.jsonl'}" in err and f"the {role}'s context is 8" in err, err
    assert not (tmp_path / "out").exists()
