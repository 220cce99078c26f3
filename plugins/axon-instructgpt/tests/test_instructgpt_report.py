"""What a report says, what it refuses, and how it measures."""

import json
import statistics

import pytest
import torch

from axon_core import CheckpointError, ContextError, DataError, UsageError, validate
from axon_core.text import ByteTokenizer, Tokenizer
from axon_instructgpt import STAGES, Pipeline, bench
from axon_instructgpt.bench import _over_prompts
from axon_instructgpt.frontier import win_rate
from axon_instructgpt.page import page
from axon_instructgpt.report import Report, _verdict


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


def test_a_report_refuses_what_does_not_fit_before_it_samples(tiny, done, tmp_path, monkeypatch, model_of):
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
