"""Trainer `kto`: its loss against float64 by hand and against TRL, z_0, exact resume, learning, and bad input."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from axon_core import ConfigError, ContextError, DataError, Key
from axon_core.text import ByteTokenizer, Feedback, RowsConfig, read_comparisons
from axon_core.training import Recipe, build_trainer, evaluate, fit
from axon_dpo import FeedbackData, KTOTrainer
from axon_dpo.losses import prospect, reference_point

LINES = [
    {"prompt": f"{a}{b}?", "completion": "yes" if (a < b) == good else "no, it is not", "label": good}
    for a in "abcd"
    for b in "bdeg"
    for good in (True, False)
    if a != "d" or good
]


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def plan(saved: Any, feedback: Path) -> Any:
    def make(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **trainer: Any) -> Recipe:
        settings = {"type": "kto", "batch_size": 6, "steps": 4, "optimizer": {"type": "adamw", "lr": 3e-3}, **trainer}
        tables = {
            "model": model or {"init": str(saved())},
            "data": {"path": str(feedback), "held_out": 0.25, **(data or {})},
            "trainer": settings,
        }
        return Recipe.of(tables, "tiny", "a test")

    return make


def naive(
    ratios: list[float], labels: list[bool], others: list[float], beta: float, weights: tuple[float, float]
) -> list[float]:
    """The paper's loss, one answer after the other in float64."""
    z = max(0.0, sum(others) / len(others))
    found = []
    for ratio, label in zip(ratios, labels, strict=True):
        weight = weights[0] if label else weights[1]
        value = weight / (1 + math.exp(-beta * (ratio - z))) if label else weight / (1 + math.exp(-beta * (z - ratio)))
        found.append(weight - value)
    return found


def by_hand(model: Any, prompt: list[int], text: list[int]) -> float:
    """The log-probability of a text, alone, in float64."""
    tokens = torch.tensor([*prompt, *text])
    with torch.no_grad():
        logp = model.double()(tokens[None])[0].log_softmax(-1)
    found = sum(logp[i - 1, tokens[i]].item() for i in range(len(prompt), len(tokens)))
    model.float()
    return found


def stir(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def collected(trainer: KTOTrainer, step: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return trainer.collect(trainer.batch(step), Key((0,)))


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_the_loss_is_the_paper_s(shift):
    generator = torch.Generator().manual_seed(0)
    ratios, others = torch.randn(2, 50, generator=generator, dtype=torch.float64) * 4 + shift
    labels = torch.rand(50, generator=generator) < 0.6
    point = reference_point(others.sum().item(), 50)
    assert (point > 0) == (shift > 0)
    got = prospect(ratios, labels, point, 0.3, 1.5, 0.7)
    want = naive(ratios.tolist(), labels.tolist(), others.tolist(), 0.3, (1.5, 0.7))
    assert got.tolist() == pytest.approx(want, abs=1e-14)


def test_gains_and_losses_saturate_and_the_weights_are_their_bounds():
    ratios = torch.tensor([1e6, -1e6, 1e6, -1e6], requires_grad=True)
    labels = torch.tensor([True, True, False, False])
    loss = prospect(ratios, labels, 2.0, 0.1, 1.5, 0.5)
    loss.sum().backward()
    assert loss.tolist() == [0, 1.5, 0.5, 0] and ratios.grad.tolist() == [0, 0, 0, 0]
    at_the_point = prospect(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 2.0, 0.1, 1.5, 0.5)
    assert at_the_point.tolist() == [0.75, 0.25]
    assert reference_point(-3.0, 2) == 0 and reference_point(3.0, 2) == 1.5 and reference_point(0.0, 0) == 0


@pytest.mark.filterwarnings("default")  # of TRL and what it imports
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_trl_computes_the_same(shift):
    trl = pytest.importorskip("trl")
    generator = torch.Generator().manual_seed(0)
    logps, reference, other, other_reference = torch.randn(4, 6, generator=generator) * 3 - 20
    other = other + shift * 4
    labels = torch.tensor([True, False, True, True, False, False])
    metrics: Any = defaultdict(lambda: defaultdict(list))
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        **{"aux_loss_enabled": False, "precompute_ref_logps": True, "calculate_KL": True, "loss_type": "kto"},
        **{"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7, "_metrics": metrics},
        **{"_total_train_tokens": 0, "_tp_size": 1, "_compute_kl_logps": lambda *_: other},
    )
    ids = torch.zeros(6, 2, dtype=torch.long)
    blank = torch.zeros(6, 1)
    outputs = SimpleNamespace(log_probs=logps[:, None], entropy=blank, mean_logits=blank, aux_loss=None)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.tensor([[0, 1]] * 6)}
    inputs |= {"label": labels, "ref_logps": reference, "ref_KL_logps": other_reference}
    want = trl.KTOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)
    point = reference_point((other - other_reference).sum().item(), 6)
    assert metrics["eval"]["kl"] == [pytest.approx(point, abs=1e-5)] and (point > 0) == (shift > 0)
    got = prospect(logps - reference, labels, point, 0.3, 1.5, 0.7).mean()
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_loss_and_metrics_against_answers_by_themselves(plan):
    options = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer = build_trainer(plan(**options))
    judged, numbers = trainer.data.train, trainer.batch(1)["number"].tolist()
    mine = [judged[i] for i in numbers]
    theirs = [judged[judged.others[i]] for i in numbers]
    assert all(one.prompt != other.prompt for one, other in zip(mine, theirs, strict=True))

    def both() -> tuple[list[float], list[float]]:
        own = [by_hand(trainer.policy, one.prompt, one.completion) for one in mine]
        pairs = zip(mine, theirs, strict=True)
        return own, [by_hand(trainer.policy, one.prompt, other.completion) for one, other in pairs]

    reference, others_before = both()
    collected(trainer)
    stir(trainer.policy)
    policy, others = both()
    ratios = [a - b for a, b in zip(policy, reference, strict=True)]
    labels = [one.desirable for one in mine]
    shifts = [a - b for a, b in zip(others, others_before, strict=True)]
    data = collected(trainer, 1)
    got, counts = trainer.loss(data), trainer.counts(data)
    assert got.keys() == counts.keys()
    assert got["loss"].item() == pytest.approx(sum(naive(ratios, labels, shifts, 0.3, (1.5, 0.7))), abs=2e-5)
    assert got["kl"].item() / 6 == pytest.approx(max(0, sum(shifts) / 6), abs=2e-5)
    for which, label in (("chosen", True), ("rejected", False)):
        some = [i for i in range(6) if labels[i] == label]
        assert counts[f"rewards/{which}"] == len(some)
        assert got[f"rewards/{which}"].item() == pytest.approx(0.3 * sum(ratios[i] for i in some), abs=2e-5)
        assert got[f"logps/{which}"].item() == pytest.approx(sum(policy[i] for i in some), rel=1e-6)
    assert [name for name, term in got.items() if term.requires_grad] == ["loss"]


def test_at_the_start_every_answer_is_worth_half_its_weight(plan, tmp_path):
    trainer = build_trainer(plan(steps=1, desirable_weight=1.5))
    share = sum(one.desirable for one in trainer.data.held_out) / len(trainer.data.held_out)
    found = evaluate(trainer)
    assert found["loss"] == pytest.approx((1.5 * share + 1 - share) / 2, abs=1e-5) and found["kl"] == 0


def test_micro_batches_change_nothing(plan):
    """z_0 is the whole step's, not a micro-batch's."""
    whole, pieces = (build_trainer(plan(micro_batches=n, precision="fp64")) for n in (1, 3))
    for trainer in (whole, pieces):
        trainer.policy.double()
        collected(trainer)
        stir(trainer.policy)
    one, other = (collected(trainer, 1) for trainer in (whole, pieces))
    torch.testing.assert_close(one["point"], other["point"], atol=1e-12, rtol=0)


def test_an_answer_to_another_prompt_is_cut_to_the_context():
    records = [Feedback(prompt="a" * n, completion="b" * (8 - n), label=True) for n in (6, 2)]
    data = FeedbackData.of([*records, *records], ByteTokenizer(), context=10, held_out=0.5)
    rows = data.train.rows([0, 1])
    assert rows["scored"].sum(2).tolist() == [[3, 4], [7, 3]]  # with `eos`
    assert rows["valid"].sum(2).max() <= 10


def test_it_learns_what_is_desirable_and_resumes_exactly(plan, tmp_path):
    recipe = plan(steps=40, eval_every=40, beta=0.5)
    whole = fit(build_trainer(recipe), tmp_path / "whole")
    assert whole.metrics["rewards/chosen"] > whole.metrics["rewards/rejected"] + 0.2
    assert whole.metrics["loss"] < 0.5
    fit(build_trainer(recipe), tmp_path / "parts", stop_at=13)
    parts = fit(build_trainer(recipe), tmp_path / "parts", resume=True)
    assert parts.metrics == whole.metrics


def test_a_comparison_is_one_desirable_answer_and_one_that_is_not(plan, comparisons):
    pairs = read_comparisons(comparisons, RowsConfig())
    data = build_trainer(plan(data={"path": str(comparisons)})).data
    assert len(data.train) + len(data.held_out) == 2 * len(pairs)
    assert [one.desirable for one in data.train[:4]] == [True, False, True, False]
    assert data.train[0].name == data.train[1].name == f"line 1 of {comparisons}"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ({"prompt": "a", "completion": "b"}, DataError, r"line 1 of .* schema completion .* holds no feedback"),
        (
            {"prompt": "a", "completion": "", "label": True},
            DataError,
            r"line 1 of .* not a valid feedback: completion",
        ),
        ({"prompt": "a", "completion": "b", "label": "yes"}, DataError, r"label: must be a valid boolean, got 'yes'"),
        (
            {"prompt": "a" * 30, "completion": "b", "label": True},
            ContextError,
            r"line 1 of .* at most 24 tokens",
        ),
    ],
)
def test_bad_feedback_is_named(plan, feedback, line, error, message):
    feedback.write_text(json.dumps(line) + "\n" + feedback.read_text())
    with pytest.raises(error, match=message):
        build_trainer(plan())


def test_bad_options_are_named(plan):
    with pytest.raises(ConfigError, match=r"trainer\.beta: must be greater than 0, got 0"):
        build_trainer(plan(beta=0))
    with pytest.raises(ConfigError, match=r"trainer\.desirable_weight: must be greater than or equal to 0"):
        build_trainer(plan(desirable_weight=-1))
    with pytest.raises(DataError, match=r"at least 2 answers, .* got 1"):
        FeedbackData.of([Feedback(prompt="p", completion="a", label=True)], ByteTokenizer(), context=8)
