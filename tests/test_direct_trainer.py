"""Trainers that change their models themselves: the loop, resuming, plans, and what is refused."""

import pytest
import torch
from torch import nn

from axon_core import ContractError, Key, TrainingError, UsageError
from axon_core.training import DirectTrainer, Recipe, fit
from axon_core.training.planning import memory_of


class Mean(nn.Module):
    """A running sum and how many numbers are in it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))


class MeanTrainer(DirectTrainer):
    """Sums random numbers; its `loss` is their mean."""

    trainable = ("mean",)
    broken = False

    def __init__(self, **settings):
        config = self.Config(**{"steps": 6, "batch_size": 4, **settings})
        super().__init__(config, {"mean": Mean()})

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved=None):
        return cls(**recipe.trainer.options)

    def batch(self, step):
        return {"number": torch.arange(4) + 4 * step}

    def counts(self, data):
        return {"loss": float(len(data["number"])), "seen": 1.0}

    def update(self, data, key):
        mean, drawn = self.models["mean"], key.uniform((len(data["number"]),))
        mean.total += drawn.sum() if not self.broken else float("nan")
        mean.seen += len(drawn)
        sums = {"loss": drawn.sum(), "seen": mean.seen.float()}
        return sums if self.config.seed >= 0 else {"loss": drawn.sum()}

    def export(self, folder):
        (folder / "total.txt").write_text(str(self.models["mean"].total.item()), encoding="utf-8")


def test_the_loop_makes_its_updates(tmp_path):
    trainer = MeanTrainer()
    result = fit(trainer, tmp_path / "run", progress=False)
    want = sum(Key((0, step))("update", 1).uniform((4,)).sum().item() for step in range(6))
    assert result.step == 6 and int(trainer.models["mean"].seen) == 24
    assert trainer.models["mean"].total.item() == pytest.approx(want, rel=1e-6)
    lines = [line for line in result.run.read_metrics() if line["name"] == "seen"]
    assert [line["value"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert not [line for line in result.run.read_metrics() if line["name"] == "learning_rate"]


def test_it_resumes_bit_for_bit(tmp_path):
    whole, before, after = MeanTrainer(), MeanTrainer(), MeanTrainer()
    fit(whole, progress=False)
    fit(before, tmp_path / "run", stop_at=3, progress=False)
    assert int(before.models["mean"].seen) == 12
    fit(after, tmp_path / "run", resume=True, progress=False)
    assert torch.equal(after.models["mean"].total, whole.models["mean"].total)


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"max_grad_norm": 1.0}, {"compile": True}, {"micro_batches": 2}])
def test_settings_for_gradients_are_refused(setting):
    with pytest.raises(UsageError, match=f"trainer.{next(iter(setting))} "):
        fit(MeanTrainer(**setting), progress=False)


def test_a_table_that_is_not_finite_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(MeanTrainer, "broken", True)
    with pytest.raises(TrainingError, match=r"mean\.total has a number that is not finite"):
        fit(MeanTrainer(), tmp_path / "run", progress=False)


def test_names_must_agree_and_there_is_no_loss():
    with pytest.raises(ContractError, match=r"MeanTrainer\.update and \.counts must name the same terms"):
        fit(MeanTrainer(seed=-1), progress=False)
    with pytest.raises(ContractError, match="`update` changes its models"):
        MeanTrainer().loss({})


def test_nothing_is_kept_for_an_optimiser():
    memory = memory_of(MeanTrainer())
    assert (memory.optimizer, memory.gradients, memory.weights) == (0, 0, 12)
