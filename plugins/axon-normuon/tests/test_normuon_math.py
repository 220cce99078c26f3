"""NorMuon against its equations written out plainly, its memory, and exact resumption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from axon_core import Recipe, UsageError, build_trainer, fit
from axon_core.training import COEFFICIENTS, OPTIMIZERS
from axon_normuon import NorMuon, NorMuonOptimizer, row_factors

SHAPES = [(16, 16), (48, 16), (16, 48), (24, 16)]
QUINTIC = [COEFFICIENTS["quintic"](i) for i in range(5)]


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 0, 64, dtype=torch.float64)  # rows of very different sizes
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(matrix * scales[: len(matrix), None]) for matrix in drawn]


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    x = x / (x.norm() * 1.01 + 1e-7)
    for a, b, c in QUINTIC:
        x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
    return x


@pytest.mark.parametrize("cuts", [None, [8, 24, 16]], ids=["whole", "stacked"])
def test_it_makes_the_update_written_out_plainly(cuts: list[int] | None):
    ours = matrices(0)
    plain = [p.detach().clone() for p in ours]
    rows = {ours[1]: cuts} if cuts else {}
    group = {"params": ours, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "beta2": 0.8, "eps": 1e-8}
    optimizer = NorMuonOptimizer([group], QUINTIC, rows)
    momenta = [torch.zeros_like(p) for p in plain]
    moments = [torch.zeros(len(p), dtype=torch.float64) for p in plain]
    for step in range(3):
        for i, gradient in enumerate(matrices(10 + step)):
            g = ours[i].grad = gradient.detach()
            momenta[i] = 0.9 * momenta[i] + 0.1 * g
            direction, made, first = 0.1 * g + 0.9 * momenta[i], [], 0
            for count in rows.get(ours[i], [len(g)]):
                part = orthogonal(direction[first : first + count])
                part = math.sqrt(max(1, count / part.shape[1])) * part
                v = moments[i][first : first + count]
                for row in range(count):
                    v[row] = 0.8 * v[row] + 0.2 * sum(float(x) ** 2 for x in part[row]) / part.shape[1]
                hat = torch.stack([part[row] / (math.sqrt(v[row]) + 1e-8) for row in range(count)])
                hat = hat * part.norm() / hat.norm()
                made.append(hat)
                first += count
            plain[i] = plain[i] * (1 - 0.1 * 0.2) - 0.1 * torch.cat(made)
        optimizer.step()
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found.detach(), expected)


def test_balanced_rows_are_equal_at_a_decay_of_zero_and_keep_the_norm():
    step = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step *= torch.logspace(-2, 0, 6, dtype=torch.float64)[:, None]
    squares = step.square().sum(1)
    factors = row_factors(squares, squares / 10, 1e-12)
    balanced = step * factors[:, None]
    assert factors.min() > 0
    torch.testing.assert_close(balanced.norm(), step.norm())
    torch.testing.assert_close(balanced.norm(dim=1), (step.norm() / math.sqrt(6)).expand(6))


def test_a_step_of_nothing_stays_finite():
    assert row_factors(torch.zeros(3), torch.zeros(3), 1e-8).equal(torch.zeros(3))


def test_it_is_built_for_the_hidden_matrices_and_says_what_it_keeps():
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 24), nn.Linear(24, 16))
    config = OPTIMIZERS.config("normuon", lr=0.1, beta2=0.5)
    assert isinstance(config, NorMuon)
    optimizer, rest = config.build([model])
    assert isinstance(optimizer, NorMuonOptimizer) and isinstance(rest, torch.optim.AdamW)
    assert {group["beta2"] for group in optimizer.param_groups} == {0.5}
    model(torch.arange(8)).square().sum().backward()
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert kept == optimizer.moment_bytes() == 4 * (2 * 16 * 24 + 24 + 16)


def test_divided_parameters_are_refused():
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.to_local = lambda: None
    with pytest.raises(UsageError, match="normuon needs whole parameters; use muon, or the strategy ddp"):
        NorMuonOptimizer([{"params": [parameter], "lr": 0.1}], QUINTIC)


def test_a_training_resumes_exactly(tmp_path):
    tables = {
        "model": {"type": "xllama", "context": 16, "dim": 32, "n_layers": 1, "n_heads": 2},
        "trainer": {
            **{"type": "causal_lm", "steps": 6, "batch_size": 2, "eval_every": 3},
            "optimizer": {"type": "normuon", "lr": 0.01},
        },
    }

    def trained(folder, stops):
        for at in stops:
            trainer = build_trainer(Recipe.of(tables, "normuon", "NorMuon"))
            fit(trainer, folder, resume=at != stops[0], stop_at=at, progress=False)
        return trainer.models["model"].state_dict()

    whole, parts = trained(tmp_path / "whole", [6]), trained(tmp_path / "parts", [3, 6])
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
