"""The loss `raters` in both trainers: gradients, learning who lies, exact resume, and bad input; and the stages."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from axon_advise.raters import Rating, labelled, order_accuracy, ratings_table, read_ratings
from axon_advise.raters.labelling import KnownRater, RatedComparisons
from axon_advise.raters.report import raters_page
from axon_core import MODELS, CheckpointError, ConfigError, DataError, Key, fit
from axon_core.text import ByteTokenizer, Comparison, Ranking, read_comparisons, read_records
from axon_core.training import Recipe, build_trainer
from axon_dpo import PREFERENCE_LOSSES, StatedPreference

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 24}
HONEST, LIAR = "Ada", "Dora"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rows(n, liar_share=0.4):
    """Texts of a's are better than texts of b's; one rater says the opposite."""
    liars = round(n * liar_share)
    found = []
    for i in range(n):
        texts = ["a" * (1 + i % 5), "b" * (1 + i % 3)]
        lies = i * 7 % n < liars
        chosen, rejected = texts[::-1] if lies else texts
        rater = LIAR if lies else HONEST
        found.append({"prompt": f"say {i % 10}", "chosen": chosen, "rejected": rejected, "rater": rater})
    return found


@pytest.fixture
def trainer(tmp_path):
    """Return what makes a trainer of a kind from rows."""

    def make(kind, records, saved=None, data=None, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        model = LLAMA
        if kind == "dpo":
            if not (tmp_path / "start").exists():
                torch.manual_seed(0)
                tokenizer = ByteTokenizer()
                MODELS.build(LLAMA, vocab_size=tokenizer.vocab_size).save(tmp_path / "start", tokenizer)
            model = {"init": str(tmp_path / "start")}
        trainer = {"type": kind, "batch_size": 8, "optimizer": {"lr": 3e-3}, "loss": {"type": "raters"}, **options}
        tables = {"model": model, "trainer": trainer, "data": {"path": str(path), "held_out": 0.25, **(data or {})}}
        return build_trainer(Recipe.of(tables, "r", "recipe"), saved)

    return make


def loss_of(raters, held_out=10, **options):
    loss = PREFERENCE_LOSSES.build({"type": "raters", "beta": 1.0, **options})
    told = [StatedPreference(f"row {m}", m, (m, 0), (m, 1)) for m in range(len(raters))]
    loss.introduce(raters, told, told * held_out)
    return loss


def test_a_certain_rater_has_the_usual_loss():
    delta, usual = torch.linspace(-5, 5, 11), PREFERENCE_LOSSES.build({"type": "sigmoid", "beta": 0.7})
    loss = loss_of(["Ada"], beta=0.7)
    loss.reliability = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(loss.by(torch.zeros(11, dtype=torch.long)).of(delta), usual.of(delta))
    torch.testing.assert_close(loss.of(delta), usual.of(delta))


def test_it_learns_from_the_held_out_differences_at_its_steps_alone():
    loss, calls = loss_of(["Ada", "Bo", "gold"], every=5, trusted=("gold",), beta=2.0), []

    def compare():
        calls.append(1)
        return torch.tensor([30.0] * 20 + [-30.0] * 20), torch.tensor([0] * 20 + [1] * 20)

    before = loss.reliability.clone()
    for step in range(5):
        loss.learn(step, compare)
    assert not calls and torch.equal(loss.reliability, before)
    loss.learn(5, compare)
    assert calls == [1]
    torch.testing.assert_close(loss.reliability, torch.tensor([29 / 30, 9 / 30, 0.999], dtype=torch.float64))
    assert [rating.verdict for rating in loss.ratings()] == ["reliable", "answers against the others", "trusted"]
    other = loss_of(["Ada", "Bo", "gold"], trusted=("gold",))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.reliability, loss.reliability) and torch.equal(other.error, loss.error)
    with pytest.raises(CheckpointError, match="started with 3 raters, and these are 2"):
        loss_of(["Ada", "Bo"]).load_state_dict(loss.state_dict())


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_liar_is_found_while_it_trains(trainer, tmp_path, kind):
    options = {"steps": 50, "optimizer": {"lr": 1e-2}, "loss": {"type": "raters", "every": 10, "beta": 0.5}}
    made = trainer(kind, rows(400), **options)
    assert made.batch(0)["rater"].shape == (8,)
    fit(made, tmp_path / "run")
    ratings = {one.name: one for one in read_ratings(tmp_path / "run" / "model")}
    assert ratings[HONEST].reliability > 0.85 and ratings[LIAR].reliability < 0.3
    assert ratings[LIAR].verdict == "answers against the others"
    assert ratings[HONEST].labels + ratings[LIAR].labels == 400


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_run_resumes_exactly(trainer, tmp_path, kind):
    options = {"steps": 14, "save_every": 7, "loss": {"type": "raters", "every": 4}}
    fit(trainer(kind, rows(40), **options), tmp_path / "whole")
    fit(trainer(kind, rows(40), **{**options, "steps": 7}), tmp_path / "half")
    fit(trainer(kind, rows(40), **options), tmp_path / "half", resume=True)
    whole, half = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "half"))
    assert whole.keys() == half.keys() and all(torch.equal(whole[name], half[name]) for name in whole)
    one, other = (read_ratings(tmp_path / name / "model") for name in ("whole", "half"))
    assert one == other and one[0].reliability != 0.9


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_micro_batches_do_not_matter(trainer, kind):
    found = []
    for pieces in (1, 4):
        made = trainer(kind, rows(40), precision="fp64", micro_batches=pieces, loss={"type": "raters", "every": 2})
        fit(made.__class__(made.config.model_copy(update={"steps": 5}), made.models, made.data))
        found.append(made.models[made.trainable[0]].state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_rows_without_raters_are_as_before(trainer, kind):
    plain = [{k: v for k, v in row.items() if k != "rater"} for row in rows(40)]
    named = trainer(kind, rows(40), loss={"type": "sigmoid"})
    without = trainer(kind, plain, loss={"type": "sigmoid"})
    one, other = named.batch(0), without.batch(0)
    assert one.pop("rater").unique().tolist() == [0, 1] and "rater" not in other
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert without.state_dict().keys() <= {"reference", "reference_free"}
    assert named.data_digest() != without.data_digest()
    turned = [{**row, "rater": {HONEST: LIAR, LIAR: HONEST}[row["rater"]]} for row in rows(40)]
    assert trainer(kind, turned, loss={"type": "sigmoid"}).data_digest() != named.data_digest()


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_bad_rows_are_refused(trainer, kind, caplog):
    mixed = rows(8)
    del mixed[5]["rater"]
    with pytest.raises(DataError, match=r"all rows must name their rater, or none, but line 1 .* does and line 6"):
        trainer(kind, mixed)
    for name, words in (("", "at least 1 character"), ("x" * 201, "at most 200 characters"), (7, "string")):
        with pytest.raises(DataError, match=words):
            trainer(kind, [{**row, "rater": name} for row in rows(8)])
    with pytest.raises(ConfigError, match=r"trusted.*must name raters of the data"):
        trainer(kind, rows(8), loss={"type": "raters", "trusted": ["Nobody"]})
    with pytest.raises(ConfigError, match="α > β"):
        trainer(kind, rows(8), loss={"type": "raters", "prior": [1.0, 1.0]})
    pair = {"prompt": "say", "chosen": "aa", "rejected": "bb", "rater": "gold"}
    gold = [*rows(4), pair, {**pair, "chosen": "bb", "rejected": "aa"}, *rows(4)]
    with pytest.raises(DataError, match=r"line 6 .* says the opposite of line 5 .*trusted raters"):
        trainer(kind, gold, loss={"type": "raters", "trusted": ["gold"]})
    with caplog.at_level(logging.WARNING, "axon"):
        trainer(kind, [{**rows(1)[0], "rater": "once"}, *rows(12)])
    assert "once, have no held-out comparison" in caplog.text
    caplog.clear()
    trainer(kind, [{**row, "rater": "only"} for row in rows(8)])
    assert "all comparisons are by one rater" in caplog.text


def test_all_schemas_of_comparisons_keep_the_rater(tmp_path):
    given = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "rater": "Ada"},
        {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0], "rater": "Ada"},
        {"chosen": "p q a", "rejected": "p q b", "rater": "Ada"},
        {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b", "rater": "Ada"},
    ]
    for i, row in enumerate(given):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(row) + "\n")
        assert [record.rater for record in read_comparisons(tmp_path / f"{i}.jsonl")] == ["Ada"]


def test_labels_are_divided_by_share_and_right_by_reliability():
    raters = {name: KnownRater(reliability=c, share=s) for name, c, s in (("A", 1, 3), ("B", 0, 1), ("C", 0.7, 4))}
    answers = labelled(8000, raters, Key((0,)))
    counts = {name: sum(one.rater == name for one in answers) for name in raters}
    assert counts == {"A": 3000, "B": 1000, "C": 4000}
    rates = {name: sum(one.right for one in answers if one.rater == name) / counts[name] for name in raters}
    assert rates["A"] == 1 and rates["B"] == 0 and abs(rates["C"] - 0.7) < 0.03


def test_the_stage_turns_wrong_answers_round(tmp_path):
    source = tmp_path / "comparisons"
    source.mkdir()
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "unfinished": ["chosen"]}
    (source / "comparisons.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(pair) + "\n")
    ranking = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}
    (source / "rankings.jsonl").write_text(json.dumps(ranking) + "\n" + json.dumps(ranking) + "\n")
    raters = {"Ada": {"reliability": 1.0}, "Dora": {"reliability": 0.0}}
    config = RatedComparisons.Config.model_validate({"comparisons": str(source), "raters": raters})
    RatedComparisons(config).run(tmp_path / "out")
    pairs = {record.rater: record for record in read_records(tmp_path / "out" / "comparisons.jsonl", Comparison)}
    assert (pairs["Ada"].chosen, pairs["Ada"].unfinished) == ("a", ("chosen",))
    assert (pairs["Dora"].chosen, pairs["Dora"].unfinished) == ("b", ("rejected",))
    rankings = {record.rater: record.ranking for record in read_records(tmp_path / "out" / "rankings.jsonl", Ranking)}
    assert rankings == {"Ada": (2, 0, 1), "Dora": (1, 0, 2)}
    clean = read_records(tmp_path / "out" / "clean" / "comparisons.jsonl", Comparison)
    assert [record.rater for record in clean] == ["Ada"]
    assert json.loads((tmp_path / "out" / "facts.json").read_text())["right"] == 0.5


def test_the_stage_refuses_adversaries_alone_and_bad_names():
    bad = {"Dora": {"reliability": 0.1}}, {"": {"reliability": 1.0}}, {}
    for raters, words in zip(
        bad, ("at least one rater must be right", "1 to 200 characters", "at least 1"), strict=True
    ):
        with pytest.raises(ValueError, match=words):
            RatedComparisons.Config.model_validate({"comparisons": "x", "raters": raters})


def test_the_report_says_who_is_what_and_what_is_ambiguous():
    ratings = [
        Rating("Ada|<b>", 0.95, 0.02, 400, 40),
        Rating("Bo", 0.56, 0.05, 300, 60),
        Rating("Dora", 0.21, 0.03, 500, 50),
        Rating("once", 0.89, 0.09, 1, 1),
    ]
    verdicts = ["reliable", "careless", "answers against the others", "too few held-out labels to tell"]
    assert [one.verdict for one in ratings] == verdicts
    table = ratings_table(ratings, {"Bo": 0.55})
    assert "| Dora | 500 | 50 | 0.210 ± 0.030 | – | answers against the others |" in table
    assert "| 0.560 ± 0.050 | 0.55 |" in table and "<b>" not in table
    page = raters_page({"reward": ratings}, {"Bo": 0.55}, {"raters": 0.9}, 7, {"dpo": (0.8, 0.01)})
    assert "1 − C, explains the labels as well; the prior" in page and "check that with" not in page
    assert "- raters: 90.0%" in page and "- dpo: 80.0% ± 1.0%" in page
    against = raters_page({"reward": ratings[2:3]}, {}, {}, 7, None)
    assert "most labels are taken to be wrong" in against


def test_accuracy_counts_pairs_of_different_truth():
    truth = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    scores = torch.tensor([[0.5, 0.5, 1.0], [3.0, 1.0, 2.0]])
    assert order_accuracy(scores, truth) == ((0.5 + 1 + 1 + 1 + 0) / 5, 5)


def test_a_run_without_ratings_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"whose trainer\.loss has the type raters"):
        read_ratings(tmp_path)
