"""AdamW in 8 bits: its steps beside AdamW's and bitsandbytes', its memory, and exact resumption."""

from __future__ import annotations

import bitsandbytes
import torch
from torch import nn

from axon_core import Recipe, build_trainer, fit
from axon_core.training import OPTIMIZERS
from axon_qlora.adamw8bit import AdamW8bit


def steps(optimizer, weight, n=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        weight.grad = torch.randn(weight.shape, generator=generator) * torch.logspace(-2, 0, weight.shape[-1])
        optimizer.step()
    return weight.detach()


def linear(rows, columns):
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=False)


def test_small_tensors_are_adamws():
    ours, theirs = linear(20, 20), linear(20, 20)
    config = OPTIMIZERS.config("adamw8bit", lr=0.01)
    assert isinstance(config, AdamW8bit)
    found = steps(config.build([ours])[0], ours.weight)
    (adamw,) = OPTIMIZERS.config("adamw", lr=0.01).build([theirs])
    torch.testing.assert_close(found, steps(adamw, theirs.weight), rtol=0, atol=1e-6)


def test_large_tensors_are_nearly_adamws_and_as_near_as_bitsandbytes():
    layers = [linear(64, 100) for _ in range(3)]
    before = layers[0].weight.detach().clone()
    (eight,) = AdamW8bit(lr=0.01).build(layers[:1])
    (plain,) = OPTIMIZERS.config("adamw", lr=0.01).build(layers[1:2])
    options = {name: plain.param_groups[0][name] for name in ("lr", "betas", "eps", "weight_decay")}
    theirs = bitsandbytes.optim.AdamW8bit([layers[2].weight], **options)
    moved, exact, other = (
        steps(optimizer, layer.weight) - before for optimizer, layer in zip((eight, plain, theirs), layers, strict=True)
    )
    away, their_away = ((way - exact).norm() / exact.norm() for way in (moved, other))
    assert 0 < away < 0.05 and away < 1.1 * their_away, (away, their_away)
    state = eight.state[layers[0].weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.uint8
    kept = sum(value.nbytes for value in state.values())
    assert kept == eight.moment_bytes() == 4 + 2 * 6400 + 8 * 25


def test_a_training_resumes_exactly(tmp_path):
    tables = {
        "model": {"type": "xllama", "context": 32, "dim": 64, "n_layers": 1, "n_heads": 2},
        "trainer": {
            **{"type": "causal_lm", "steps": 6, "batch_size": 2, "eval_every": 3},
            "optimizer": {"type": "adamw8bit", "lr": 0.01},
        },
    }

    def trained(folder, stops):
        for at in stops:
            trainer = build_trainer(Recipe.of(tables, "eight", "AdamW in 8 bits"))
            fit(trainer, folder, resume=at != stops[0], stop_at=at, progress=False)
        return trainer.models["model"].state_dict()

    whole, parts = trained(tmp_path / "whole", [6]), trained(tmp_path / "parts", [3, 6])
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
