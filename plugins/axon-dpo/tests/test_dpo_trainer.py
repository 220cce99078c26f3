"""Trainer `dpo`: its loss against rows by themselves, the reference, exact resume, learning, and bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import dropout

from axon_core import CheckpointError, ConfigError, ContextError, ContractError, DataError, Key, TrainingError
from axon_core.alignment import Sequences, completion_logprobs
from axon_core.cli import main
from axon_core.interfaces import CausalLM
from axon_core.text import ByteTokenizer, Comparison
from axon_core.training import Recipe, build_trainer, evaluate, fit
from axon_dpo import DPOTrainer, PreferenceData
from axon_dpo.data import PreferenceConfig


def losses(run: Path, name: str = "loss", split: str = "train") -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if (line["name"], line["split"]) == (name, split)]


def collected(trainer: DPOTrainer, step: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return trainer.collect(trainer.batch(step), Key((0,)))


def by_hand(model: CausalLM, pair) -> list[float]:
    """Log-probabilities of both texts, each alone, in float64."""
    found = []
    for text in (pair.chosen, pair.rejected):
        tokens = torch.tensor([*pair.prompt, *text])
        with torch.no_grad():
            logp = model.double()(tokens[None])[0].log_softmax(-1)
        found.append(sum(logp[i - 1, tokens[i]].item() for i in range(len(pair.prompt), len(tokens))))
    model.float()
    return found


def stir(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("attention", [{"type": "MHA"}, {"type": "GQA", "n_kv_heads": 1}], ids=["MHA", "GQA"])
def test_loss_and_metrics_against_texts_by_themselves(recipe, saved, attention):
    trainer = build_trainer(recipe({"init": str(saved(attention=attention))}, loss={"type": "sigmoid", "beta": 0.3}))
    pairs, number = trainer.data.train, trainer.batch(1)["number"].tolist()
    reference = [by_hand(trainer.policy, pairs[i]) for i in number]
    collected(trainer)
    stir(trainer.policy)
    policy = [by_hand(trainer.policy, pairs[i]) for i in number]
    rewards = [[0.3 * (p - r) for p, r in zip(*rows, strict=True)] for rows in zip(policy, reference, strict=True)]
    margins = [chosen - rejected for chosen, rejected in rewards]
    want = {
        "loss": [math.log1p(math.exp(-margin)) for margin in margins],
        "rewards/chosen": [chosen for chosen, _ in rewards],
        "rewards/rejected": [rejected for _, rejected in rewards],
        "rewards/accuracies": [float(margin > 0) for margin in margins],
        "rewards/margins": margins,
        "logps/chosen": [chosen for chosen, _ in policy],
        "logps/rejected": [rejected for _, rejected in policy],
    }
    data = collected(trainer, 1)
    got, counts = trainer.loss(data), trainer.counts(data)
    assert got.keys() == counts.keys() == want.keys() and set(counts.values()) == {4}
    for name, values in want.items():
        assert got[name].item() == pytest.approx(sum(values), abs=2e-5, rel=1e-6), name
    assert [name for name, term in got.items() if term.requires_grad] == ["loss"]


def test_at_the_start_the_policy_is_the_reference_dropout_or_not(recipe, tmp_path):
    trainer = build_trainer(recipe(steps=1))
    embedding = trainer.policy.embedding
    embedding.register_forward_hook(lambda module, _, x: dropout(x, 0.5, module.training))
    fit(trainer, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx([math.log(2)], abs=1e-6)
    assert losses(tmp_path / "run", "rewards/margins") == pytest.approx([0], abs=1e-6)


def test_the_reference_is_computed_in_the_training_s_precision(recipe):
    found = []
    for precision in ("bf16", "fp32"):
        trainer = build_trainer(recipe(precision=precision, batch_size=12))
        collected(trainer)
        rows = {name: value.flatten(0, 1) for name, value in trainer.data.train.rows(range(12)).items()}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            want = completion_logprobs(trainer.policy, Sequences(**rows)).view(-1, 2)
        found.append(trainer.state_dict()["reference"]["train"])
        assert torch.equal(found[-1], want)
    assert not torch.equal(*found)


def test_without_a_reference_the_ratios_are_the_probabilities(recipe):
    trainer = build_trainer(recipe(reference_free=True))
    data = collected(trainer)
    assert not data["reference"].any()
    terms = trainer.loss(data)
    assert terms["rewards/chosen"].item() == pytest.approx(0.1 * terms["logps/chosen"].item(), rel=1e-6)


@pytest.mark.parametrize("loss", [{"type": "sigmoid"}, {"type": "ipo", "length_normalised": True}])
def test_neither_padding_nor_order_nor_micro_batches_matter(recipe, loss):
    trainer = build_trainer(recipe(loss=loss))
    trainer.policy.double()
    collected(trainer)
    stir(trainer.policy)
    data = collected(trainer)
    want = {name: value.item() for name, value in trainer.loss(data).items()}
    pairs = [trainer.data.train[i] for i in data["number"].tolist()]
    both = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    for padding, length in (("left", None), ("left", 24), ("right", 24)):
        rows = vars(Sequences.of(both, padding=padding, length=length))
        other = {**data, **{name: value.unflatten(0, (-1, 2)) for name, value in rows.items()}}
        assert {n: v.item() for n, v in trainer.loss(other).items()} == pytest.approx(want, abs=1e-9, rel=1e-9)
    backwards = {name: rows.flip(0) for name, rows in data.items()}
    assert {n: v.item() for n, v in trainer.loss(backwards).items()} == pytest.approx(want, abs=1e-9, rel=1e-9)
    weights = []
    for micro_batches in (1, 4):
        trainer = build_trainer(
            recipe(loss=loss, micro_batches=micro_batches, optimizer={"type": "adamw", "eps": 1e-3})
        )
        fit(trainer)
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


def test_it_resumes_bit_for_bit_with_the_reference_it_began_with(recipe, saved, tmp_path):
    plan = recipe({"init": str(saved())}, save_every=2, ema=0.9)
    tables = {"name": plan.name, **plan.tables}
    whole = build_trainer(plan)
    fit(whole, tmp_path / "whole", recipe=tables)
    fit(build_trainer(plan), tmp_path / "parts", recipe=tables, stop_at=2)
    shutil.rmtree(saved())  # what a run began with need not stay
    again = build_trainer(plan, tmp_path / "parts" / "checkpoints" / "step-2" / "model")
    fit(again, tmp_path / "parts", resume=True, recipe=tables)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()
    for name, logps in whole.state_dict()["reference"].items():
        assert torch.equal(logps, again.state_dict()["reference"][name])


def test_it_learns_what_is_preferred(recipe, tmp_path):
    trainer = build_trainer(recipe(steps=30, eval_every=30, optimizer={"type": "adamw", "lr": 1e-2}))
    result = fit(trainer, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < 0.4
    assert sum(losses(tmp_path / "run", "rewards/accuracies")[-5:]) == 5
    assert result.metrics["rewards/margins"] > 0.5 and result.metrics["loss"] < 0.6
    assert losses(tmp_path / "run", split="held_out") == [result.metrics["loss"]]
    assert trainer.sample().startswith("db?")  # the first of the comparisons held out


def test_evaluation_covers_every_comparison_held_out(recipe):
    trainer = build_trainer(recipe(batch_size=3))  # 4 held out: one full batch and a part of one
    collected(trainer)
    reference = [by_hand(trainer.policy, pair) for pair in trainer.data.held_out]
    stir(trainer.policy)
    policy = [by_hand(trainer.policy, pair) for pair in trainer.data.held_out]
    margins = [0.1 * (p[0] - r[0] - p[1] + r[1]) for p, r in zip(policy, reference, strict=True)]
    found = evaluate(trainer)
    assert len(margins) == 4
    assert found["rewards/margins"] == pytest.approx(sum(margins) / 4, abs=1e-6)
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4, abs=1e-6)


def test_another_model_as_reference_leaves_after_it_was_asked(recipe, saved):
    policy, other = saved(), saved("other", seed=1, dim=32)
    trainer = build_trainer(recipe({"init": str(policy), "reference": str(other)}))
    assert trainer.models.keys() == {"policy", "reference"}
    data = collected(trainer)
    assert trainer.models.keys() == {"policy"}
    reference = CausalLM.load(other)
    want = [by_hand(reference, trainer.data.train[i]) for i in data["number"].tolist()]
    torch.testing.assert_close(data["reference"].double(), torch.tensor(want).double(), atol=1e-5, rtol=1e-6)


def test_braces_in_a_path_are_part_of_it(tmp_path):
    file = tmp_path / "{a}" / "c.jsonl"
    file.parent.mkdir()
    file.write_text("".join(f'{{"prompt": "{prompt}", "chosen": "a", "rejected": "b"}}\n' for prompt in ("p", "pppp")))
    settings = PreferenceConfig(path=str(file))
    assert len(PreferenceData.load(settings, ByteTokenizer(), context=6).train) == 1
    with pytest.raises(ContextError, match=r"line 2 of .*\{a\}/c\.jsonl"):
        PreferenceData.load(settings, ByteTokenizer(), context=5)


def test_a_text_that_was_cut_off_has_no_end():
    records = [Comparison(prompt=c, chosen="a", rejected="b", unfinished=["chosen"]) for c in "ab"]
    (pair,) = PreferenceData.of(records, ByteTokenizer(), context=8).train
    assert (pair.chosen, pair.rejected) == ([ord("a")], [ord("b"), 257])


def test_in_python_with_any_order_of_records():
    records = [Comparison(prompt=c, chosen="a", rejected="b") for c in "abcdef"]
    data = PreferenceData.of(records, ByteTokenizer(), context=8, held_out=0.34)
    assert [len(data.train), len(data.held_out)] == [4, 2]
    assert data.train[0].chosen == [ord("a"), 257]


def test_an_epoch_visits_every_comparison_once(recipe):
    trainer = build_trainer(recipe(batch_size=3))
    first, second = (
        [n for s in steps for n in trainer.batch(s)["number"].tolist()] for steps in (range(4), range(4, 8))
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def spoilt(comparisons: Path, **fields: str) -> None:
    lines = comparisons.read_text().splitlines()
    lines[6] = json.dumps({**json.loads(lines[6]), **fields})
    comparisons.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"chosen": "no, it is not"}, DataError, r"line 7 of .*chosen and rejected must differ"),
        ({"prompt": "x" * 30}, ContextError, r"line 7 of .* at most 24 tokens together, .* got 30 \+ 4"),
        ({"rejected": ""}, DataError, r"line 7 of .*rejected: must have"),
    ],
)
def test_a_bad_comparison_is_named(recipe, comparisons, fields, error, message):
    spoilt(comparisons, chosen="yes", rejected="no, it is not")
    spoilt(comparisons, **fields)
    with pytest.raises(error, match=message):
        build_trainer(recipe())


def test_characters_the_tokenizer_does_not_know_are_named(recipe, saved, comparisons):
    with pytest.raises(DataError, match=r"line 1 of .*: character '\?'"):
        build_trainer(recipe({"init": str(saved(characters="abcdeginosty, "))}))


def test_references_with_other_tokens_are_refused(recipe, saved):
    init = str(saved(characters="?abcdeginosty, "))
    cases = {
        "more": ({"characters": "?abcdeginosty, z"}, "vocabulary has 16 tokens and the policy's 15"),
        "moved": ({"characters": "?bacdeginosty, "}, "token 1 is b'b' in one and b'a' in the other"),
        "wider": ({"characters": "?abcdeginosty,", "vocab_size": 15}, "they have 14 and 15 tokens"),
    }
    for name, (options, message) in cases.items():
        with pytest.raises(ConfigError, match=rf"model\.reference: must have the policy's tokens, but .*{message}"):
            build_trainer(recipe({"init": init, "reference": str(saved(name, **options))}))
    with pytest.raises(CheckpointError, match=r"\b15\b.*\b9\b"):
        build_trainer(recipe({"init": str(saved("narrow", characters="?abcdeginosty, ", vocab_size=9))}))


def test_a_run_does_not_go_on_with_other_comparisons(recipe, comparisons, tmp_path):
    plan = recipe()
    fit(build_trainer(plan), tmp_path / "run", stop_at=2)
    spoilt(comparisons, chosen="perhaps")
    with pytest.raises(CheckpointError, match="the data are not those that the run started with"):
        fit(build_trainer(plan), tmp_path / "run", resume=True)


def test_a_run_keeps_its_reference_or_goes_without_one_to_the_end(recipe, tmp_path):
    fit(build_trainer(recipe()), tmp_path / "run", stop_at=2)
    with pytest.raises(CheckpointError, match=r"trainer\.reference_free must stay False"):
        fit(build_trainer(recipe(reference_free=True)), tmp_path / "run", resume=True)


def test_a_reference_without_finite_probabilities_is_refused_with_the_comparison(recipe):
    trainer = build_trainer(recipe())
    with torch.no_grad():
        trainer.policy.head.weight[ord("y")] = math.nan
    with pytest.raises(TrainingError, match=r"line 1 of .*: the reference must give both texts a probability"):
        collected(trainer)


def test_too_few_comparisons():
    with pytest.raises(DataError, match=r"at least 2 comparisons, .* got 1"):
        PreferenceData.of([Comparison(prompt="p", chosen="a", rejected="b")], ByteTokenizer(), context=8)


def test_the_recipe_asks_for_a_model_and_leaves_nothing_behind(saved, comparisons, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "dpo", "--out", str(out)]) == 2
    assert "model.init: this field is required" in capsys.readouterr().err
    spoilt(comparisons, chosen="same", rejected="same")
    settings = [f"model.init={saved()}", f"data.path={comparisons}", "trainer.steps=1", "trainer.batch_size=2"]
    command = ["train", "dpo", "--out", str(out), *(word for text in settings for word in ("--set", text))]
    assert main(command) == 1
    assert "line 7 of" in capsys.readouterr().err and not out.exists()
    spoilt(comparisons, chosen="other")
    assert main(command) == 0
    assert losses(out) == pytest.approx([math.log(2)], abs=1e-6)


def test_the_paper_s_optimizer_is_in_the_recipe():
    config = DPOTrainer.Config.model_validate(Recipe.load("dpo").trainer.options)
    assert (config.batch_size, config.warmup, config.optimizer.lr, config.loss.options) == (
        64,
        150,
        1e-6,
        {"beta": 0.1},
    )


def test_only_causal_language_models_are_trained(recipe):
    trainer = build_trainer(recipe())
    with pytest.raises(ContractError, match="needs a CausalLM as its policy, got a Linear"):
        DPOTrainer(trainer.config, {"policy": torch.nn.Linear(1, 1)}, trainer.data)
