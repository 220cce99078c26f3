"""Cautious weight decay against its equation, on several optimisers, and exact resumption."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from axon_core import Recipe, build_trainer, fit
from axon_core.training import WEIGHT_DECAYS
from axon_cwd import CautiousDecay, cautious_decay

OPTIMIZERS = {
    "sgd": lambda weights, decay: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=decay),
    "adamw": lambda weights, decay: torch.optim.AdamW(weights, lr=0.1, weight_decay=decay, fused=True),
    "muon": lambda weights, decay: torch.optim.Muon(weights, lr=0.1, weight_decay=decay),
}


def test_each_entry_decays_or_not():
    before = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    after = torch.tensor([1.5, 2.5, -1.5, -2.5, 2.0])  # smaller, larger, smaller, larger, as it was
    assert cautious_decay(before, after, 0.1).tolist() == pytest.approx([1.3, 2.5, -1.3, -2.5, 1.8])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimiser_makes_the_update_written_out_plainly(name: str):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 8, generator=generator)
    ours, free = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, plain = OPTIMIZERS[name]([ours], 0.5), OPTIMIZERS[name]([free], 0.0)
    CautiousDecay(CautiousDecay.Config()).attach([optimizer])
    decayed = 0
    for _ in range(5):
        x = ours.detach().clone()
        free.data.copy_(x)  # the same weights and moments: the step alone is the other's
        ours.grad = torch.randn(start.shape, generator=generator)
        free.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
        expected = free.detach().clone()
        for index in torch.cartesian_prod(torch.arange(6), torch.arange(8)).tolist():
            i = tuple(index)
            if (x[i] - free[i]) * x[i] >= 0:
                expected[i] -= 0.1 * 0.5 * x[i]
                decayed += 1
        torch.testing.assert_close(ours.detach(), expected)
    assert 0 < decayed < 5 * 6 * 8


def test_groups_without_decay_and_weights_without_gradients_stay():
    decaying, other, idle = (nn.Parameter(torch.ones(4)) for _ in range(3))
    groups = [{"params": [decaying, idle]}, {"params": [other], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
    WEIGHT_DECAYS.build("cautious").attach([optimizer])
    decaying.grad = other.grad = torch.zeros(4)
    optimizer.step()
    assert decaying.tolist() == pytest.approx([0.95] * 4)
    assert other.tolist() == idle.tolist() == [1.0] * 4


def trained(tables: dict, folder, stops: list[int]) -> dict[str, torch.Tensor]:
    for at in stops:
        trainer = build_trainer(Recipe.of(tables, "cautious", "Cautious weight decay"))
        fit(trainer, folder, resume=at != stops[0], stop_at=at, progress=False)
    return trainer.models["model"].state_dict()


def recipe(optimizer: dict) -> dict:
    return {
        "model": {"type": "xllama", "context": 16, "dim": 32, "n_layers": 1, "n_heads": 2},
        "trainer": {
            **{"type": "causal_lm", "steps": 6, "batch_size": 2, "eval_every": 3},
            "optimizer": {"weight_decay": 5.0, "lr": 0.01, **optimizer},
        },
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_training_decays_so_and_resumes_exactly(kind, tmp_path):
    tables = recipe({"type": kind, "decay": "cautious"})
    whole, parts = trained(tables, tmp_path / "whole", [6]), trained(tables, tmp_path / "parts", [3, 6])
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    name = "blocks.0.feed_forward.down.weight"
    norms = {
        rule: trained(recipe({"type": kind, **options}), tmp_path / rule, [6])[name].norm().item()
        for rule, options in {
            "left out": {},
            "decoupled": {"decay": "decoupled"},
            "none": {"weight_decay": 0.0},
        }.items()
    }
    assert norms["left out"] == norms["decoupled"] < whole[name].norm().item() < norms["none"]
