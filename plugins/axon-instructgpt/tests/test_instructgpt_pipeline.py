"""`axon align`: stages in their order, resumption, what is refused, and what the report says."""

import errno
import json
import math
import os
import shutil

import pytest

from axon_core import CheckpointError, ConfigError, DataError, UnknownKey, UsageError, validate
from axon_core.cli import main
from axon_core.papers import find_recipe
from axon_core.training import Fit, Recipe
from axon_instructgpt import STAGES, Pipeline, align
from axon_instructgpt import report as module
from axon_instructgpt.excerpts import Excerpts


def names(tiny):
    return [*Pipeline.load(str(tiny / "tiny.toml")).stages]


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_what_is_done_is_passed_over(tiny, done):
    told = []
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()}
    align(Pipeline.load(str(tiny / "tiny.toml")), done, told.append)
    assert told == [f"[{i}/6] {name}: done already" for i, name in enumerate(names(tiny), 1)]
    assert {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()} == before


def test_a_half_stage_goes_on_and_ends_with_the_same_bits(tiny, tmp_path, monkeypatch):
    pipeline, out = Pipeline.load(str(tiny / "tiny.toml")), tmp_path / "out"

    class Killed(BaseException):
        pass

    step = Fit._step

    def breaks(fit):
        if fit.run.path.name == "reward" and fit.state.step == 5:
            raise Killed
        return step(fit)

    monkeypatch.setattr(Fit, "_step", breaks)
    with pytest.raises(Killed):
        align(pipeline, out, lambda line: None)
    assert not (out / "reward" / "model").exists() and not (out / "ppo").exists()
    monkeypatch.undo()
    told = []
    align(pipeline, out, told.append)
    assert [line.endswith("done already") for line in told] == [True, True, True, False, False, False]
    for name in ("reward", "ppo"):
        assert weights(out / name) == weights(tiny / "out" / name), name
    assert (out / "report" / "report.json").read_text() == (tiny / "out" / "report" / "report.json").read_text()


def test_every_training_is_a_run_folder_with_a_recipe(tiny):
    from axon_core.training import RunFolder

    for name in ("pretrain", "reward", "ppo"):
        found = RunFolder.open(tiny / "out" / name)
        assert isinstance(found.recipe(), Recipe) and found.recipe().name == name
    assert found.recipe().model["reward"]["path"] == str(tiny / "out" / "reward")


def test_a_full_disk_leaves_no_half_stage_and_the_same_command_goes_on(tiny, done, capsys, monkeypatch):
    shutil.rmtree(done / "report")

    def full(facts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "page", full)
    command = ["align", str(tiny / "tiny.toml"), "--out", str(done)]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert f"cannot write {done / 'report'}: No space left on device; free some space" in err
    assert "continue with: axon align" in err and "Traceback" not in err
    assert sorted(path.name for path in done.iterdir()) == sorted([*names(tiny)[:-1], "align.json"])
    monkeypatch.undo()
    assert main(command) == 0
    assert (done / "report" / "report.json").read_text() == (tiny / "out" / "report" / "report.json").read_text()


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for out, words in ((file, "is not empty, and is not a pipeline's folder"), (file / "out", "Not a directory")):
        assert main(["align", str(tiny / "tiny.toml"), "--out", str(out)]) in (1, 2)
        err = capsys.readouterr().err
        assert words in err and str(out) in err and "Traceback" not in err
    assert file.read_text() == "mine"


def test_comparisons_are_of_the_first_two_responses_and_rankings_of_all(tiny):
    folder = tiny / "out" / "comparisons"
    read = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]  # noqa: E731
    facts = json.loads((folder / "facts.json").read_text())
    assert len(read("rankings.jsonl")) == facts["prompts"] and facts["prompts"] + facts["left_out"] == 9
    for ranking, comparison in zip(read("rankings.jsonl"), read("comparisons.jsonl"), strict=True):
        best, worst = (ranking["responses"][i] for i in ranking["ranking"])
        assert comparison == {"prompt": ranking["prompt"], "chosen": best, "rejected": worst}
    gaps = [abs(a.count("a") - b.count("a")) / 2 / 0.25 for a, b in (r["responses"] for r in read("rankings.jsonl"))]
    assert facts["bayes_accuracy"] == pytest.approx(sum(1 / (1 + math.exp(-gap)) for gap in gaps) / len(gaps))


def test_a_changed_recipe_is_refused_before_anything_is_done(tiny, done):
    changed = Pipeline.load(str(tiny / "tiny.toml"), ["ppo.trainer.steps=5"])
    with pytest.raises(UsageError, match=r"ppo .*trainer\.steps was 4 and is now 5"):
        align(changed, done, pytest.fail)
    shutil.rmtree(done / "ppo")
    with pytest.raises(UsageError, match=r"ppo .*later stages.*report"):
        align(changed, done, pytest.fail)
    shutil.rmtree(done / "report")
    told = []
    align(changed, done, told.append)
    assert told[-2:] == ["[5/6] ppo, on cpu", "[6/6] report, on cpu"]


def test_a_folder_with_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        align(Pipeline.load(str(tiny / "tiny.toml")), tmp_path, pytest.fail)
    (tmp_path / "align.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        align(Pipeline.load(str(tiny / "tiny.toml")), tmp_path, pytest.fail)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["comparisons.policy=@ppo"], ConfigError, ["comparisons.policy", "@pretrain", "@ppo"]),
        (["reward.model.init=@nothing"], ConfigError, ["reward.model.init", "@nothing"]),
        (["reward.trainer.batch_size=0"], ConfigError, ["reward.trainer.batch_size"]),
        (["ppo.trainer.type=none"], UnknownKey, ["ppo.trainer", "none"]),
        (["report.betas=[0]"], ConfigError, ["report.betas"]),
        (["report.what=1"], ConfigError, ["report.what"]),
        (["excerpts.type=nothing"], UnknownKey, ["excerpts", "nothing"]),
        (["new=3"], ConfigError, ["new", "table"]),
        (["seed=-1"], ConfigError, ["seed", "an integer of at least 0", "-1"]),
        (["seed=a"], ConfigError, ["seed", "an integer of at least 0", "'a'"]),
        (["reward.data.heldout=0.1"], ConfigError, ["reward.data", "heldout", "held_out"]),
        (["ppo.data.heldout=0.1"], ConfigError, ["ppo.data", "heldout", "held_out"]),
        (["ppo.model.reward.type=regx"], UnknownKey, ["ppo.model.reward", "regx", "regex"]),
        (["ppo.model.reward={type='regex',pattern='['}"], ConfigError, ["ppo.model.reward.pattern", "'['"]),
        (["ppo.model.policy={typ='xllama'}"], ConfigError, ["ppo.model.policy", "type"]),
        (["ppo.model.policy={type='xllama',dims=3}"], ConfigError, ["ppo.model.policy", "dims"]),
        (["ppo.model.auxiliary={type='pretraining',gamma=-1}"], ConfigError, ["ppo.model.auxiliary.gamma"]),
        (["reward.model={ini='x'}"], ConfigError, ["reward.model", "type"]),
        (["report.reward.pattern=["], ConfigError, ["report.reward.pattern", "'['"]),
        (["report.reward.type=regx"], UnknownKey, ["report.reward", "regx"]),
        (["comparisons.reward.pattern=["], ConfigError, ["comparisons.reward.pattern", "'['"]),
        (["report.policies={optimum='x'}"], ConfigError, ["report.policies", "'optimum'"]),
        (
            ["ppo={trainer={type='dpo',loss={type='sigmoyd'}},model={init='x'},data={path='x'}}"],
            UnknownKey,
            ["ppo.trainer.loss", "sigmoyd"],
        ),
        (["ppo={trainer={type='dpo'},model={init='x'},data={paths='x'}}"], ConfigError, ["ppo.data", "paths"]),
        (["ppo={trainer={type='dpo'},model={int='x'},data={path='x'}}"], ConfigError, ["ppo.model", "init"]),
        (["ppo={trainer='sft',model={init='x'},data={path='x',template='plan'}}"], UnknownKey, ["ppo.data.template"]),
        (["ppo={trainer='ppo_control',model={type='perceptron'},data={environment='no'}}"], UnknownKey, ["'no'"]),
    ],
)
def test_a_bad_recipe_is_refused_before_the_first_stage(tiny, overrides, error, words):
    with pytest.raises(error) as caught:
        Pipeline.load(str(tiny / "tiny.toml"), overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_command(tiny, done, tmp_path, capsys):
    assert main(["align", str(tiny / "tiny.toml"), "--out", str(done)]) == 0
    out, err = capsys.readouterr()
    assert "# Alignment" in out and "done already" in err
    assert main(["align", str(tiny / "tiny.toml"), "--out", str(done), "--set", "report.seed=1"]) == 2
    err = capsys.readouterr().err
    assert "seed was None and is now 1" in err and "continue with" not in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert main(["align", str(tiny / "tiny.toml"), "--out", str(tmp_path / "mine")]) == 2
    err = capsys.readouterr().err
    assert "not empty" in err and "choose another" in err and "continue with" not in err
    assert main(["align", str(tmp_path / "none.toml")]) == 2
    empty = tmp_path / "empty.toml"
    empty.write_text('summary = "nothing"')
    assert main(["align", str(empty)]) == 2
    failing = ["align", str(tiny / "tiny.toml"), "--out", str(tmp_path / "f"), "--set", "excerpts.train=5000"]
    assert main(failing) == 1
    err = capsys.readouterr().err
    assert "only" in err and "continue with: axon align" in err and "Traceback" not in err
    assert not (tmp_path / "f" / "excerpts").exists()  # nothing half-written


def test_the_recipe_align_tiny_is_a_pipeline():
    pipeline = Pipeline.load("align-tiny")
    assert [*pipeline.stages][-1] == "report" and find_recipe("align-tiny").summary
    assert {"training", "excerpts", "comparisons", "report"} <= {*STAGES}


def test_excerpts_begin_with_words_and_never_share_a_prompt(tmp_path):
    Excerpts(validate(Excerpts.Config, {"train": 50, "held_out": 10})).run(tmp_path / "out")
    lines = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    }
    from axon_core.text import read_text

    text = read_text()
    for name, part in (("train", text[: int(0.9 * len(text))]), ("held_out", text[int(0.9 * len(text)) :])):
        assert len({line["prompt"] for line in lines[name]}) == len(lines[name]) == {"train": 50, "held_out": 10}[name]
        for line in lines[name]:
            assert line["prompt"] + line["completion"] in part
            assert (len(line["prompt"]), len(line["completion"])) == (16, 12) and not line["prompt"][0].isspace()
    with pytest.raises(DataError, match="different excerpts"):
        Excerpts(validate(Excerpts.Config, {"train": 10**6})).run(tmp_path / "more")
    assert not (tmp_path / "more").exists()
