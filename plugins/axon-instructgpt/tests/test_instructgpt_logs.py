"""`axon align --log`: the same option, by the same code, as `axon train` has."""

import random
import sys

import pytest

from axon_core.cli import main

STAGES = """
[pretrain]
data = { path = "TEXT", tokenizer = "char" }
model = { type = "xllama", context = 8, dim = 16, n_layers = 1, n_heads = 2 }
trainer = { type = "causal_lm", steps = 3, batch_size = 2 }
[excerpts]
type = "excerpts"
path = "TEXT"
train = 4
held_out = 2
prompt = 3
completion = 2
[sft]
data = { path = "@excerpts/train.jsonl", held_out = 0.5 }
model = { init = "@pretrain" }
trainer = { type = "sft", steps = 2, batch_size = 2 }
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices("abcd ", k=900)))
    path = tmp_path / "stages.toml"
    path.write_text(STAGES.replace("TEXT", str(tmp_path / "text.txt")))
    return path


def test_all_trainings_log_and_no_other_stage(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    assert main(["align", str(recipe), "--out", str(out), "--log", "tensorboard"]) == 0
    for stage, steps in (("pretrain", 3), ("sft", 2)):
        scalars = EventAccumulator(str(out / stage / "tensorboard")).Reload().Scalars("train/loss")
        assert [each.step for each in scalars] == [*range(1, steps + 1)]
    assert [path.parent.name for path in out.rglob("tensorboard")].count("excerpts") == 0


def test_a_missing_package_is_told_before_anything_is_done(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["align", str(recipe), "--out", str(tmp_path / "out"), "--log", "wandb"]) == 2
    assert "pip install 'axon-core[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_to_go_on_with_names_the_log(recipe, tmp_path, capsys):
    out = str(tmp_path / "out")
    overrides = ["--set", "sft.data.path=nowhere.jsonl", "--log", "tensorboard"]
    assert main(["align", str(recipe), "--out", out, *overrides]) == 1
    assert "--set sft.data.path=nowhere.jsonl --log tensorboard" in capsys.readouterr().err
