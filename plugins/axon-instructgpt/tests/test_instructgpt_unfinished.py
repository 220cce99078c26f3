"""Responses that are cut off before their end stay so: in comparisons, in what learns from them, and in the report."""

import json

import pytest
import torch

from axon_core import MODELS, ByteTokenizer, fit, validate
from axon_core.text import Comparison, Ranking, read_comparisons, read_records
from axon_core.training import Recipe, build_trainer, load_pretrained
from axon_dpo import PreferenceData
from axon_instructgpt import RewardModel
from axon_instructgpt.comparisons import Comparisons
from axon_instructgpt.rankings import RankedConfig, RankedData
from axon_instructgpt.report import Report

PROMPT, LENGTH = 2, 3  # tokens of a prompt, and the most of a response: together they fill the context
REWARD = {"type": "regex", "pattern": "a"}
EOS = ByteTokenizer.eos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes a's and b's and may end before `LENGTH`, a reward model, prompts, and comparisons."""
    folder = tmp_path_factory.mktemp("unfinished")
    texts = ["a", "b", "ab", "ba", "aab", "bab"]
    lines = [{"prompt": first + second, "completion": text} for first in "xyz" for second in "xyz" for text in texts]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2}
    tables = {
        "model": {**sizes, "context": PROMPT + LENGTH + 1},
        "trainer": {"type": "sft", "steps": 80, "batch_size": 4, "optimizer": {"lr": 3e-2}},
        "data": {"path": str(folder / "lines.jsonl")},
    }
    trainer = build_trainer(Recipe.of(tables, "sft", "a test"))
    fit(trainer)
    policy = MODELS.build({**sizes, "context": PROMPT + LENGTH}, vocab_size=258)
    policy.load_state_dict(trainer.models["model"].state_dict())
    policy.save(folder / "policy")
    torch.manual_seed(0)
    RewardModel.of(policy).save(folder / "judge")
    for name in ("policy", "judge"):
        ByteTokenizer().save(folder / name)
    table = {"policy": str(folder / "policy"), "prompts": str(folder / "lines.jsonl"), "reward": REWARD}
    Comparisons(validate(Comparisons.Config, {**table, "response_tokens": LENGTH})).run(folder / "comparisons")
    return folder


def test_comparisons_say_which_responses_were_cut_off(folder):
    facts = json.loads((folder / "comparisons" / "facts.json").read_text())
    lines = [json.loads(line) for line in (folder / "comparisons" / "rankings.jsonl").read_text().splitlines()]
    found = [(len(text), i in line.get("unfinished", [])) for line in lines for i, text in enumerate(line["responses"])]
    assert facts["responses"] == len(found) and facts["unfinished"] == sum(cut_off for _, cut_off in found)
    assert {cut_off for _, cut_off in found} == {True, False}
    assert all((length == LENGTH) == cut_off for length, cut_off in found)


def test_no_end_is_learned_where_there_was_none_and_the_context_is_enough(folder):
    tokenizer, records = ByteTokenizer(), folder / "comparisons" / "rankings.jsonl"
    settings = RankedConfig(path=str(records))
    ranked = RankedData.of(read_comparisons(records), tokenizer, PROMPT + LENGTH, settings)
    answers = [answer for one in (*ranked.train, *ranked.held_out) for answer in one.answers]
    comparisons = read_records(folder / "comparisons" / "comparisons.jsonl", Comparison)
    pairs = PreferenceData.of(comparisons, tokenizer, PROMPT + LENGTH)
    answers += [text for pair in (*pairs.train, *pairs.held_out) for text in pair[2:4]]
    for answer in answers:
        assert (answer[-1] == EOS) == (len(tokenizer.decode(answer)) < LENGTH)
    assert {answer[-1] == EOS for answer in answers} == {True, False}


def test_a_report_scores_what_was_written_and_counts_what_was_cut_off(folder):
    table = {
        "reference": str(folder / "policy"),
        "policies": {},
        "prompts": str(folder / "lines.jsonl"),
        "reward": REWARD,
        "reward_model": str(folder / "judge"),
        "rankings": str(folder / "comparisons"),
        "response_tokens": LENGTH,
        "pool": 4,
    }
    report = Report(validate(Report.Config, table))
    bench = report._bench()
    drawn, (judge, _) = bench.base(), load_pretrained(folder / "judge", RewardModel)
    for prompt, responses, scores in zip(bench.prompts, drawn.tokens, drawn.judged, strict=True):
        for response, score in zip(responses, scores.tolist(), strict=True):
            with torch.no_grad():
                found = judge(torch.tensor([[*prompt.tokens, *response]]))[0, -1]
            assert score == pytest.approx(found.item(), abs=1e-5)
    every = [response[-1] != EOS for responses in drawn.tokens for response in responses]
    assert {*every} == {True, False}
    records = read_records(folder / "comparisons" / "rankings.jsonl", Ranking)
    right = []
    for record in records:
        ends = [[] if i in record.unfinished else [EOS] for i in range(2)]
        texts = [[*record.prompt.encode(), *record.responses[i].encode(), *ends[i]] for i in record.ranking]
        with torch.no_grad():
            better, worse = (judge(torch.tensor([text]))[0, -1].item() for text in texts)
        right.append(better > worse)
    report.run(folder / "report")
    facts = json.loads((folder / "report" / "report.json").read_text())
    assert facts["policies"]["reference"]["unfinished"] == sum(every) / len(every)
    assert facts["reward_model"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert "| cut off |" in (folder / "report" / "report.md").read_text()
