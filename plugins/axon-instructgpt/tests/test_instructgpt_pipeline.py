"""`axon align`: stages in their order, resumption, what is refused, and what the report says."""

import errno
import json
import math
import os
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from axon_core.cli import main
from axon_core.config import validate
from axon_core.errors import CheckpointError, ConfigError, ContextError, DataError, UnknownKey, UsageError
from axon_core.loop import Fit
from axon_core.paper import recipe
from axon_core.prompts import Prompt
from axon_core.recipe import Recipe
from axon_core.tokenizer import ByteTokenizer, Tokenizer
from axon_instructgpt import STAGES, Pipeline, align, bench
from axon_instructgpt import report as module
from axon_instructgpt.bench import _over_prompts
from axon_instructgpt.comparisons import Comparisons
from axon_instructgpt.excerpts import Excerpts
from axon_instructgpt.frontier import win_rate
from axon_instructgpt.page import page
from axon_instructgpt.report import Report, _verdict
from axon_instructgpt.responses import asked, every_response, sampled

TINY = Path(__file__).with_name("tiny.toml").read_text(encoding="utf-8")
STAGE_NAMES = ["pretrain", "excerpts", "comparisons", "reward", "ppo", "report"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe file, and the folder in which it was done."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(3, (900,), generator=generator).tolist()
    words = "".join("ab "[i] for i in letters)
    (folder / "text.txt").write_text(words)
    (folder / "tiny.toml").write_text(TINY.replace("TEXT", str(folder / "text.txt")))
    told = []
    align(Pipeline.load(str(folder / "tiny.toml")), folder / "out", told.append)
    assert told == [f"[{i}/6] {name}" for i, name in enumerate(STAGE_NAMES, 1)]
    return folder


@pytest.fixture
def done(tiny, tmp_path):
    """A copy of the folder, to be changed."""
    shutil.copytree(tiny / "out", tmp_path / "out")
    return tmp_path / "out"


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_what_is_done_is_passed_over(tiny, done):
    told = []
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()}
    align(Pipeline.load(str(tiny / "tiny.toml")), done, told.append)
    assert told == [f"[{i}/6] {name}: done already" for i, name in enumerate(STAGE_NAMES, 1)]
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
    from axon_core.run import RunFolder

    for name in ("pretrain", "reward", "ppo"):
        found = RunFolder.open(tiny / "out" / name)
        assert isinstance(found.recipe(), Recipe) and found.recipe().name == name
    assert found.recipe().model["reward"]["path"] == str(tiny / "out" / "reward")


def test_the_report_says_what_is_so(tiny):
    facts = json.loads((tiny / "out" / "report" / "report.json").read_text())
    reference, ppo = facts["policies"]["reference"], facts["policies"]["ppo"]
    assert reference["kl"] == 0 and reference["length"] == 2 and ppo["length"] == 2 and ppo["kl"] != 0
    assert 0 <= ppo["win_rate"] <= 1 and 0 <= ppo["model_win_rate"] <= 1
    assert reference["win_rate"] == pytest.approx(0.5, abs=1e-6)  # the same responses: as many better as worse
    frontier = facts["frontier"]
    assert frontier["exact"] and [point["step"] for point in frontier["ppo"]] == [2, 4]
    first, *others = frontier["best_of_n"]
    assert first["n"] == 1 and first["kl"] == pytest.approx(0, abs=1e-6)
    for point in others:
        assert 0 < point["kl"] <= point["kl_bound"] + 1e-9 and point["reward"] > first["reward"]
    mild, _, strong = frontier["optimum"]
    assert first["reward"] < mild["reward"] < strong["reward"] <= 1 and mild["kl"] < strong["kl"]
    # What was sampled is near what was enumerated.
    assert reference["reward"] == pytest.approx(first["reward"], abs=0.25)
    assert set(facts["reward_model"]) == {"accuracy", "known_reward_accuracy", "bayes_accuracy", "prompts"}
    assert facts["budget"]["kl"] == 1 and [*facts["budget"]["reached"]] == ["ppo"]
    assert facts["pool"] is None and facts["target_beta"] == 0.3
    assert [point["beta"] for point in frontier["optimum"]] == [1.0, 0.3, 0.1]
    marked = frontier["optimum"][1]
    text = (tiny / "out" / "report" / "report.md").read_text()
    assert "The recipe asks for a win rate of 90% at a KL divergence of at most 1 nats a response. ppo " in text
    assert f"| ppo | {ppo['reward']:.4f} | {ppo['win_rate']:.1%} ± {ppo['win_rate_error']:.1%} |" in text
    assert f"β = 0.3: reward {marked['reward']:.4f} at {marked['kl']:.3f} nats, exact." in text
    assert "cut off" not in text  # the tokenizer has no end
    assert all(sample["ppo"].replace("\n", "⏎") in text for sample in facts["samples"]) and len(facts["samples"]) == 2
    assert (tiny / "out" / "report" / "frontier.png").stat().st_size > 1000


def test_a_policy_reaches_what_is_asked_if_it_wins_often_enough_within_the_budget():
    measured = {"win_rate": 0.968, "kl": 5.98}
    policies = {
        "reference": {"win_rate": 0.5, "kl": 0.0},
        "a": measured,
        "b": {**measured, "kl": 6.51},
        "c": {**measured, "win_rate": 0.899},
    }
    required = Report.Config.model_fields["required_win_rate"].default
    budget = _verdict(6.5, required, policies)
    assert budget == {"kl": 6.5, "win_rate": 0.9, "reached": {"a": True, "b": False, "c": False}}
    assert _verdict(None, required, policies) is None
    assert _verdict(5.98, 0.968, policies)["reached"]["a"] and not _verdict(5.98, 0.969, policies)["reached"]["a"]
    columns = dict.fromkeys(("reward", "model_reward", "model_win_rate", "length", "unfinished"))
    facts = {"prompts": 2, "responses": 3, "reward_model": None, "samples": [], "budget": budget, "target_beta": None}
    facts |= {"frontier": {"optimum": []}}
    text = page({**facts, "policies": {name: {**columns, **values} for name, values in policies.items()}})
    assert (
        "The recipe asks for a win rate of 90% at a KL divergence of at most 6.5 nats a response. a reaches it (96.8% "
        "at 5.98 nats); b does not reach it (96.8% at 6.51 nats); c does not reach it (89.9% at 5.98 nats)."
    ) in text


def test_a_report_refuses_what_does_not_fit_before_it_samples(tiny, done, tmp_path, monkeypatch):
    stages = Pipeline.load(str(tiny / "tiny.toml"))
    other = tmp_path / "other"
    ByteTokenizer().save(other)
    model_of(258).save(other)

    def report(**changes):
        table = {key: value for key, value in stages.stages["report"].items() if key != "type"}
        table = json.loads(json.dumps({**table, **changes}).replace('"@', f'"{done}/'))
        return STAGES["report"](validate(STAGES["report"].Config, table))

    def drawn(*given, **options):
        pytest.fail("all is checked before anything is sampled")

    monkeypatch.setattr(bench, "sampled", drawn)
    for changes, name in (({"policies": {"mine": str(other)}}, "mine"), ({"reward_model": str(other)}, "reward_model")):
        with pytest.raises(UsageError, match=f"{name} and the reference must have the same tokenizer, but they have"):
            report(**changes).run(tmp_path / "report")
    with pytest.raises(ContextError, match=r"line 1 of .* has 3 tokens and its response up to 6"):
        report(response_tokens=6).run(tmp_path / "report")
    short = tmp_path / "short"
    Tokenizer.load(done / "pretrain" / "model").save(short)
    model_of(3, context=4).save(short)
    with pytest.raises(ContextError, match="the mine's context is 4"):
        report(policies={"good": f"{done}/ppo", "mine": str(short)}).run(tmp_path / "report")
    facts = done / "comparisons" / "facts.json"
    facts.write_text("{}")
    with pytest.raises(DataError, match=r"cannot read .*facts\.json: 'bayes_accuracy'"):
        report().run(tmp_path / "report")
    facts.unlink()
    with pytest.raises(DataError, match=r"facts\.json.*No such file.*give the folder of a stage"):
        report().run(tmp_path / "report")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        report(policies={"mine": str(tmp_path / "none")}).run(tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_paths_of_a_report_may_begin_with_a_tilde(tiny, done, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    table = {key: value for key, value in Pipeline.load(str(tiny / "tiny.toml")).stages["report"].items()}
    table.pop("type")
    table = json.loads(json.dumps(table).replace('"@', '"~/out/'))
    STAGES["report"](validate(STAGES["report"].Config, table)).run(tmp_path / "report")
    assert (tmp_path / "report" / "report.json").read_text() == (done / "report" / "report.json").read_text()


def test_a_policys_responses_are_independent_of_the_references(tiny):
    """A policy that is the reference wins against it by chance alone: not always exactly half."""
    out = tiny / "out"
    stage = Report(
        validate(
            Report.Config,
            {
                "reference": str(out / "pretrain"),
                "policies": {"same": str(out / "pretrain")},
                "prompts": str(out / "excerpts" / "train.jsonl"),
                "reward": {"type": "regex", "pattern": "a"},
                "response_tokens": 2,
                "responses": 2,
            },
        )
    )
    facts = stage._measure()
    same = facts["policies"]["same"]
    assert same["kl"] == 0 and same["win_rate"] != 0.5 and 0 < same["win_rate_error"] < 0.3
    samples = facts["samples"]
    assert any(sample["same"] != sample["reference"] for sample in samples)


def test_errors_are_over_prompts():
    """Two responses to a prompt that are always alike are worth one."""
    once = torch.tensor([0.0, 1.0, 1.0, 0.5])
    mean, error = _over_prompts(once)
    assert (mean, error) == pytest.approx((0.625, statistics.stdev([0, 1, 1, 0.5]) / 2))
    twice = win_rate(once[:, None].expand(4, 2), torch.full((4, 2), 0.7))
    assert _over_prompts(twice) == pytest.approx((0.5, statistics.stdev([0, 1, 1, 0]) / 2))
    assert _over_prompts(once[:1]) == (0.0, None)


def test_a_full_disk_leaves_no_half_stage_and_the_same_command_goes_on(tiny, done, capsys, monkeypatch):
    shutil.rmtree(done / "report")

    def full(facts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "page", full)
    command = ["align", str(tiny / "tiny.toml"), "--out", str(done)]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert f"cannot write {done / 'report'}: No space left on device; free some space" in err
    assert "go on with: axon align" in err and "Traceback" not in err
    assert sorted(path.name for path in done.iterdir()) == sorted([*STAGE_NAMES[:-1], "align.json"])
    monkeypatch.undo()
    assert main(command) == 0
    assert (done / "report" / "report.json").read_text() == (tiny / "out" / "report" / "report.json").read_text()


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for out, words in ((file, "is not empty, and no pipeline's folder"), (file / "out", "Not a directory")):
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
    with pytest.raises(UsageError, match=r"ppo .*those after it.*report"):
        align(changed, done, pytest.fail)
    shutil.rmtree(done / "report")
    told = []
    align(changed, done, told.append)
    assert told[-2:] == ["[5/6] ppo", "[6/6] report"]


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
        (["seed=-1"], ConfigError, ["seed", "whole number", "-1"]),
        (["seed=a"], ConfigError, ["seed", "whole number", "'a'"]),
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
    assert "seed was None and is now 1" in err and "go on with" not in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert main(["align", str(tiny / "tiny.toml"), "--out", str(tmp_path / "mine")]) == 2
    err = capsys.readouterr().err
    assert "not empty" in err and "choose another" in err and "go on with" not in err
    assert main(["align", str(tmp_path / "none.toml")]) == 2
    empty = tmp_path / "empty.toml"
    empty.write_text('summary = "nothing"')
    assert main(["align", str(empty)]) == 2
    failing = ["align", str(tiny / "tiny.toml"), "--out", str(tmp_path / "f"), "--set", "excerpts.train=5000"]
    assert main(failing) == 1
    err = capsys.readouterr().err
    assert "only" in err and "go on with: axon align" in err and "Traceback" not in err
    assert not (tmp_path / "f" / "excerpts").exists()  # nothing half-written


def test_the_recipe_align_tiny_is_a_pipeline():
    pipeline = Pipeline.load("align-tiny")
    assert [*pipeline.stages][-1] == "report" and recipe("align-tiny").summary
    assert {"training", "excerpts", "comparisons", "report"} <= {*STAGES}


def test_excerpts_begin_with_words_and_never_share_a_prompt(tmp_path):
    Excerpts(validate(Excerpts.Config, {"train": 50, "held_out": 10})).run(tmp_path / "out")
    lines = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    }
    from axon_core.data import read_text

    text = read_text()
    for name, part in (("train", text[: int(0.9 * len(text))]), ("held_out", text[int(0.9 * len(text)) :])):
        assert len({line["prompt"] for line in lines[name]}) == len(lines[name]) == {"train": 50, "held_out": 10}[name]
        for line in lines[name]:
            assert line["prompt"] + line["completion"] in part
            assert (len(line["prompt"]), len(line["completion"])) == (16, 12) and not line["prompt"][0].isspace()
    with pytest.raises(DataError, match="different excerpts"):
        Excerpts(validate(Excerpts.Config, {"train": 10**6})).run(tmp_path / "more")
    assert not (tmp_path / "more").exists()


def model_of(vocab_size, seed=0, context=8):
    from axon_core import MODELS

    torch.manual_seed(seed)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "context": context}
    return MODELS.build({"type": "xllama", **sizes}, vocab_size=vocab_size).eval()


class Three(ByteTokenizer):
    """Bytes of which 2 is the end of a text."""

    eos = 2


@pytest.mark.parametrize("ends", [True, False])
def test_all_responses_are_enumerated_and_sampled_as_often_as_they_are_likely(ends):
    tokenizer = Three()
    tokenizer.eos = 2 if ends else None
    model, prompt = model_of(3), Prompt("p", (0, 1), "line 1")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(4)
    responses, probabilities = every_response(model, prompt, tokenizer, 3)
    assert len(responses) == (1 + 2 + 4 * 3 if ends else 27)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    from axon_core.randomness import Key

    (drawn,) = sampled(model, [prompt], tokenizer, n=4000, response_tokens=3, key=Key((0,)), rows=1000)
    assert all(response in responses for response in drawn)
    counts = torch.tensor([drawn.count(response) for response in responses]) / 4000
    assert 0.5 * (counts - probabilities).abs().sum() < 0.04
    (again,) = sampled(model, [prompt], tokenizer, n=3, response_tokens=3, key=Key((0,)), rows=2)
    assert again == drawn[:3]


def test_prompts_are_named_and_checked(tmp_path, tiny):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{"prompt": "bb"}\n')
    model, tokenizer = model_of(258), ByteTokenizer()
    assert asked(str(file), tokenizer, model, 2) == (
        Prompt("a", (97,), f"line 1 of {file}"),
        Prompt("bb", (98, 98), f"line 3 of {file}"),
    )
    file.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match="line 2"):
        asked(str(file), tokenizer, model, 2)
    file.write_text("")
    with pytest.raises(DataError, match="holds no record"):
        asked(str(file), tokenizer, model, 2)
    file.write_text('{"prompt": "a"}\n{"prompt": "ababababab"}\n')
    given = {"policy": str(tiny / "out" / "pretrain"), "prompts": str(file), "response_tokens": 2}
    stage = Comparisons(validate(Comparisons.Config, {**given, "reward": {"type": "regex", "pattern": "a"}}))
    with pytest.raises(ContextError, match="line 2"):
        stage.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
