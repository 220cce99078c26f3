"""The training loop: exact resumption, invariance to micro-batches, averages, clipping, precision, failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy, digest_after

from axon_core.config import validate
from axon_core.errors import ConfigError, ContractError, TrainingError
from axon_core.training.hooks import hook
from axon_core.training.loop import evaluate, fit

MUON = {"type": "muon"}


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.3},
        {"dropout": 0.3, "optimizer": MUON, "ema": 0.9, "schedule": "cosine", "warmup": 3},
        {"micro_batches": 3, "max_grad_norm": 0.5, "eval_every": 2, "precision": "bf16"},
    ],
    ids=["adamw", "muon", "bf16"],
)
def test_n_steps_and_n_more_are_2n_bit_for_bit(tmp_path: Path, options):
    whole = Toy.make(**options)
    fit(whole, tmp_path / "whole")
    fit(Toy.make(**options), tmp_path / "parts", stop_at=5)
    rest = Toy.make(**options, seed=0)
    result = fit(rest, tmp_path / "parts", resume=True)
    assert (result.step, result.status) == (12, "finished")
    assert rest.digest() == whole.digest()
    assert rest.calls == whole.calls  # the trainer's own state is resumed too
    numbers = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert numbers[0] == numbers[1]


def test_other_seeds_and_dropout_change_the_weights():
    assert len({digest_after(), digest_after(seed=1), digest_after(dropout=0.3)}) == 3


@pytest.mark.parametrize("optimizer", [{"type": "adamw"}, MUON])
def test_the_update_does_not_depend_on_the_micro_batches(optimizer):
    # Muon's polynomials blow rounding up by orders of magnitude where a gradient has directions close to nothing; in
    # double precision what is left shows whether the sums are right.
    trained = []
    for pieces in (1, 3, 8):
        trainer = Toy.make(micro_batches=pieces, optimizer=optimizer, steps=4, precision="fp64", dropout=0.3)
        fit(trainer)
        trained.append(trainer.models["model"].state_dict())
    for other in trained[1:]:
        for name, weights in trained[0].items():
            torch.testing.assert_close(other[name], weights, rtol=0, atol=1e-12)


def test_the_average_follows_its_formula_and_is_what_is_evaluated_and_exported(tmp_path: Path):
    weights, seen = [], []

    class Watch:
        @hook
        def step_end(self, fit):
            weights.append(fit.trainer.models["model"].head.weight.detach().clone())

        @hook
        def eval_end(self, metrics):
            seen.append(metrics["loss"])

    trainer = Toy.make(ema=0.25, steps=6)
    expected = trainer.models["model"].head.weight.detach().clone()
    fit(trainer, tmp_path / "run", hooks=[Watch()])
    for each, decay in zip(weights, (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25, 0.25), strict=True):  # it rises to its value
        expected = decay * expected + (1 - decay) * each
    torch.testing.assert_close(trainer.models["model"].head.weight.detach(), expected)
    assert evaluate(trainer)["loss"] == seen[-1]
    exported = torch.load(tmp_path / "run/model/weights.pt", weights_only=True)
    torch.testing.assert_close(exported["head.weight"], expected)


def test_clipping_limits_the_norm_and_is_reported_before_it():
    norms, moved = [], []

    class Watch:
        @hook
        def fit_start(self, fit):
            inner = fit.state.update

            def update(factor):
                gradients = [p.grad.flatten() for p in fit.state.parameters.values()]
                moved.append(torch.cat(gradients).norm().item())
                inner(factor)

            fit.state.update = update

        @hook
        def step_end(self, metrics):
            norms.append(metrics["grad_norm"])

    fit(Toy.make(max_grad_norm=0.01, steps=3), hooks=[Watch()])
    assert all(norm > 0.01 for norm in norms)
    assert moved == pytest.approx([0.01] * 3, rel=1e-3)


def test_bf16_computes_otherwise_and_keeps_float32_weights():
    trainer = Toy.make(precision="bf16")
    fit(trainer)
    assert {p.dtype for p in trainer.models["model"].parameters()} == {torch.float32}
    assert trainer.digest() != digest_after()
    losses = [evaluate(Toy.make(precision=precision))["loss"] for precision in ("fp32", "bf16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.01)


def test_it_learns():
    trainer = Toy.make(steps=150, optimizer={"type": "muon"}, schedule="linear", eval_every=150)
    before = evaluate(trainer)["loss"]
    assert fit(trainer).metrics["loss"] < before - 1


def test_a_frozen_model_stays_and_is_not_saved(tmp_path: Path):
    trainer = Toy.make()
    trainer.models = {**trainer.models, "reference": torch.nn.Linear(2, 2)}
    before = trainer.models["reference"].weight.detach().clone()
    fit(trainer, tmp_path / "run")
    assert torch.equal(trainer.models["reference"].weight, before)
    assert not trainer.models["reference"].weight.requires_grad
    state = json.loads((tmp_path / "run/checkpoints/step-12/state.json").read_text())
    assert list(state["models"]) == ["model"]


def test_several_mini_batches_a_step_are_several_updates():
    class Epochs(Toy):
        def minibatches(self, data, key):
            order = torch.randperm(8, generator=key.generator())
            for rows in order.split(2):
                yield {name: values[rows] for name, values in data.items()}

    trainer = Epochs.make(steps=3)
    fit(trainer)
    state = Toy.make(steps=3)
    fit(state)
    assert trainer.digest() != state.digest()


def test_collect_runs_at_rest_and_draws_by_step():
    drawn = []

    class Noisy(Toy):
        def collect(self, batch, key):
            assert not self.models["model"].training and not torch.is_grad_enabled()
            drawn.append((torch.rand(()).item(), torch.rand((), generator=key.generator()).item()))
            return batch

    fit(Noisy.make(steps=3))
    first, drawn[:] = drawn[:], []
    fit(Noisy.make(steps=3))
    assert first == drawn and len(set(first)) == 3


def test_a_term_without_gradient_is_reported_and_not_minimised():
    class Metric(Toy):
        def counts(self, data):
            return {"loss": data["tokens"][:, 1:].numel(), "first": len(data["tokens"])}

        def loss(self, data):
            return {**super().loss(data), "first": data["tokens"][:, 0].sum().float()}

    seen = []

    class Watch:
        @hook
        def step_end(self, metrics):
            seen.append(metrics)

    trainer = Metric.make(steps=1, micro_batches=4)
    fit(trainer, hooks=[Watch()])
    assert seen[0]["first"] == pytest.approx(trainer.batch(0)["tokens"][:, 0].float().mean().item())
    assert seen[0]["loss"] < 20 and trainer.digest() == digest_after(steps=1, micro_batches=4)


def test_terms_without_a_count_break_the_contract():
    class Broken(Toy):
        def counts(self, data):
            return {"another": 1}

    with pytest.raises(ContractError, match=r"same terms, got \['loss'\] and \['another'\]"):
        fit(Broken.make())


def test_a_loss_that_is_not_finite_ends_training_and_leaves_the_last_checkpoint(tmp_path: Path):
    options = {"spoil_at": 7, "save_every": 3}
    with pytest.raises(TrainingError) as caught:
        fit(Toy.make(**options), tmp_path / "run")
    message = str(caught.value)
    assert "after 7 steps, the loss is not finite: loss nan" in message and "--resume --out" in message
    result = fit(Toy.make(save_every=3), tmp_path / "run", resume=True)
    assert result.step == 12


@pytest.mark.parametrize("what", ["evaluate", "collect", "batch"])
def test_what_fails_between_two_steps_loses_none_of_them(tmp_path: Path, what: str):
    """A reward that fails, say, or an evaluation after the last step, with no checkpoint before it."""

    class Failing(Toy):
        fails = True

        def batch(self, step):
            return self.fail_at(step, "batch") or super().batch(step)

        def collect(self, data, key):
            return self.fail_at(int(data["step"][0]), "collect") or data

        def evaluate(self):
            return self.fail_at(7, "evaluate") or super().evaluate()

        def fail_at(self, step, here):
            if self.fails and step == 7 and what == here:
                raise TrainingError("the judge has left")

    with pytest.raises(TrainingError, match="the judge has left") as caught:
        fit(Failing.make(eval_every=7), tmp_path / "run")
    assert "The last checkpoint is step-7. Resume with: axon train --resume" in caught.value.__notes__[0]
    Failing.fails = False
    resumed, whole = Failing.make(eval_every=7), Failing.make(eval_every=7)
    assert fit(resumed, tmp_path / "run", resume=True).step == 12
    fit(whole)
    for found, expected in zip(resumed.models["model"].parameters(), whole.models["model"].parameters(), strict=True):
        assert torch.equal(found, expected)


def test_it_stops_early_when_nothing_gets_better(tmp_path: Path):
    class Stuck(Toy):
        def evaluate(self):
            return {"loss": 1.0}

    result = fit(Stuck.make(eval_every=2, patience=2), tmp_path / "run")
    assert (result.step, result.status) == (6, "stopped")  # the first evaluation, and two no better
    again = fit(Stuck.make(eval_every=2, patience=2), tmp_path / "run", resume=True)
    assert (again.step, again.status) == (6, "stopped")


@pytest.mark.parametrize("training_mode", [True, False])
def test_the_trainer_declares_whether_dropout_is_on_while_the_loss_is_computed(training_mode):
    modes = []

    class Declares(Toy):
        def collect(self, batch, key):
            modes.append(("collect", self.models["model"].dropout.training))
            return batch

        def loss(self, data):
            modes.append(("loss", self.models["model"].dropout.training))
            return super().loss(data)

        def evaluate(self):
            modes.append(("evaluate", self.models["model"].dropout.training))
            return super().evaluate()

    Declares.training_mode = training_mode
    trainer = Declares.make(dropout=0.5, steps=2, eval_every=1)
    fit(trainer)
    assert modes == [("collect", False), ("loss", training_mode), ("evaluate", False)] * 2
    assert (trainer.digest() == digest_after(steps=2)) == (not training_mode)


def test_training_leaves_the_global_random_numbers_alone():
    trainer = Toy.make(dropout=0.5, steps=2, eval_every=1)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fit(trainer)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batches": 9}, "micro_batches must be at most batch_size, got 9 > 8"),
        ({"schedule": "inverse_sqrt"}, "needs warmup"),
        ({"optimizer": {"type": "adamw", "lrr": 1}}, r"optimizer.lrr: unknown field 'lrr' \(did you mean 'lr'\?\)"),
        ({"optimizer": {"type": "sgd"}}, "optimizer.type: must be one of adamw, "),
        ({"optimizer": {"lr": -1}}, "optimizer.lr: must be greater than 0, got -1"),
        ({"ema": 1.0}, "ema: must be less than 1, got 1.0"),
        ({"step": 3}, "did you mean 'steps'"),
    ],
)
def test_settings_that_break_a_rule(values, message):
    with pytest.raises(ConfigError, match=message):
        Toy.make(**values)


def test_a_huge_learning_rate_diverges_with_a_remedy():
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        fit(Toy.make(steps=400, optimizer={"type": "adamw", "lr": 1e30}))


RANK = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from toy_trainer import Toy, digest_after
from axon_core.training.loop import fit
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=2)
trainer = Toy.make(steps=4, micro_batches=2, max_grad_norm=0.5)
fit(trainer)
torch.save(trainer.models["model"].state_dict(), sys.argv[2] + sys.argv[3])
dist.destroy_process_group()
"""


def test_two_processes_make_the_update_of_one(tmp_path: Path):
    store = tmp_path / "store"
    command = [sys.executable, "-c", RANK, str(Path(__file__).parent), str(store)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    alone = Toy.make(steps=4, max_grad_norm=0.5)
    fit(alone)
    for rank in range(2):
        for name, weights in torch.load(f"{store}{rank}", weights_only=True).items():
            torch.testing.assert_close(alone.models["model"].state_dict()[name], weights, rtol=0, atol=1e-6)


def test_gradients_left_by_someone_else_do_not_enter_the_first_update():
    clean, stale = Toy.make(), Toy.make()
    for parameter in stale.models["model"].parameters():
        parameter.grad = torch.ones_like(parameter)
    fit(clean)
    fit(stale)
    for ours, theirs in zip(clean.models["model"].parameters(), stale.models["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_parameter_that_was_frozen_stays_frozen_and_unchanged():
    trainer = Toy.make()
    embedding = trainer.models["model"].embedding.weight.requires_grad_(False)
    before = embedding.clone()
    fit(trainer)
    assert not embedding.requires_grad and embedding.grad is None and torch.equal(embedding, before)


def test_nothing_to_train_breaks_the_contract():
    trainer = Toy.make()
    trainer.models["model"].requires_grad_(False)
    with pytest.raises(ContractError, match="nothing to train: no parameter of model requires a gradient"):
        fit(trainer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "nonsense"}, "device: device must be auto or a device that PyTorch finds here, got 'nonsense'"),
        ({"optimizer": {"type": "adamw", "betas": [2, 3]}}, "optimizer.betas.0: must be less than 1, got 2"),
    ],
)
def test_settings_torch_would_refuse_are_refused_first(values, message):
    with pytest.raises(ConfigError) as caught:
        validate(Toy.Config, values)
    assert message in str(caught.value)
