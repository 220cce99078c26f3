"""SOAP and SOAP-Muon against their equations written out plainly, their memory, and exact resumption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from axon_core import Recipe, UsageError, build_trainer, fit
from axon_core.training import COEFFICIENTS, OPTIMIZERS
from axon_soap import SOAPMuonOptimizer, SOAPOptimizer, refresh_basis, rotate, rotate_back

SHAPES = [(8, 8), (12, 6), (6, 12)]
QUINTIC = [COEFFICIENTS["quintic"](i) for i in range(5)]


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    x = x / (x.norm() * 1.01 + 1e-7)
    for a, b, c in QUINTIC:
        x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
    return x


def eigenvectors(covariance: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigh(covariance).eigenvectors


@pytest.mark.parametrize("largest", [99, 8, 1])
def test_soap_makes_the_update_written_out_plainly(largest: int):
    ours = matrices(0)
    plain = [p.detach().clone() for p in ours]
    options = {"betas": (0.9, 0.8), "eps": 1e-3, "every": 2, "largest": largest, "weight_decay": 0.2, "lr": 0.1}
    optimizer = SOAPOptimizer([{"params": ours, **options}], {ours[1]: [4, 8]})
    cuts = [[slice(None)], [slice(0, 4), slice(4, 12)], [slice(None)]]
    kept: dict = {}
    for step in range(1, 6):
        for i, gradient in enumerate(matrices(10 + step)):
            ours[i].grad = gradient.detach()
            for cut in cuts[i]:
                g, place = gradient.detach()[cut], (i, cut.start)
                if place not in kept:
                    sides = [x if len(x) <= largest else None for x in (g @ g.T, g.T @ g)]
                    kept[place] = [sides, [None if s is None else eigenvectors(s) for s in sides], g * 0, g * 0]
                sides, bases, m, v = kept[place]
                left, right = (torch.eye(n).double() if q is None else q for n, q in zip(g.shape, bases, strict=True))
                m = 0.9 * m + 0.1 * g
                v = 0.8 * v + 0.2 * (left.T @ g @ right) ** 2
                n = (left.T @ m @ right) / (1 - 0.9**step) / ((v / (1 - 0.8**step)).sqrt() + 1e-3)
                plain[i][cut] = plain[i][cut] * (1 - 0.1 * 0.2) - 0.1 * left @ n @ right.T
                new = [g @ g.T, g.T @ g]
                sides = [None if s is None else 0.8 * s + 0.2 * x for s, x in zip(sides, new, strict=True)]
                if step % 2 == 0:
                    pairs = zip(sides, bases, strict=True)
                    bases = [None if s is None else torch.linalg.qr(s @ q)[0] for s, q in pairs]
                kept[place] = [sides, bases, m, v]
        optimizer.step()
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found.detach(), expected)


def test_soap_muon_makes_the_update_written_out_plainly():
    ours = matrices(0)
    plain = [p.detach().clone() for p in ours]
    group = {"params": ours, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    group |= {"beta2": 0.8, "eps": 1e-3, "every": 2, "largest": 8}
    optimizer = SOAPMuonOptimizer([group], QUINTIC, {ours[1]: [4, 8]})
    cuts = [[slice(None)], [slice(0, 4), slice(4, 12)], [slice(None)]]
    kept: dict = {}
    for step in range(1, 6):
        for i, gradient in enumerate(matrices(10 + step)):
            ours[i].grad = gradient.detach()
            for cut in cuts[i]:
                g, place = gradient.detach()[cut], (i, cut.start)
                new = [g @ g.T, g.T @ g]
                if place not in kept:
                    sides = [x if len(x) <= 8 else None for x in new]
                    kept[place] = [sides, [None if s is None else eigenvectors(s) for s in sides], g * 0, g * 0]
                sides, bases, m, v = kept[place]
                sides = [None if s is None else 0.8 * s + 0.2 * x for s, x in zip(sides, new, strict=True)]
                if step % 2 == 0:
                    pairs = zip(sides, bases, strict=True)
                    bases = [None if s is None else torch.linalg.qr(s @ q)[0] for s, q in pairs]
                left, right = (torch.eye(n).double() if q is None else q for n, q in zip(g.shape, bases, strict=True))
                m = 0.9 * m + 0.1 * g
                u = left.T @ (0.1 * g + 0.9 * m) @ right
                v = 0.8 * v + 0.2 * u**2
                x = orthogonal(left @ (u / (v.sqrt() + 1e-3)) @ right.T)
                plain[i][cut] = plain[i][cut] * (1 - 0.02) - 0.1 * math.sqrt(max(1, len(g) / g.shape[1])) * x
                kept[place] = [sides, bases, m, v]
        optimizer.step()
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found.detach(), expected)


def test_rotations_undo_each_other_and_a_basis_comes_closer_to_the_eigenvectors():
    generator = torch.Generator().manual_seed(0)
    x, root = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    covariance = root @ root.T
    basis = torch.eye(6, dtype=torch.float64)
    left = []
    for _ in range(60):
        basis = refresh_basis(covariance, basis)
        rotated = rotate(covariance, basis, basis)
        left.append((rotated - rotated.diag().diag()).norm().item())
    assert left[-1] < 1e-3 * left[0]
    torch.testing.assert_close(rotate_back(rotate(x, basis, None), basis, None), x)
    torch.testing.assert_close(rotate_back(rotate(x, basis, basis), basis, basis), x)


def test_vectors_and_matrices_without_rotation_are_adamws():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 5), nn.Linear(6, 5)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.3}
    (soap,) = OPTIMIZERS.config("soap", largest=1, **options).build([ours])
    (adamw,) = OPTIMIZERS.config("adamw", **options).build([theirs])
    for seed in range(4):
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed))
            its.grad = mine.grad.clone()
        soap.step()
        adamw.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("kind", ["soap", "soap_muon"])
def test_it_says_what_it_keeps(kind: str):
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
    optimizer = OPTIMIZERS.config(kind, largest=16).build([model])[0]
    model(torch.ones(2, 16)).square().sum().backward()
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert kept == optimizer.moment_bytes()


@pytest.mark.parametrize("make", [SOAPOptimizer, lambda groups: SOAPMuonOptimizer(groups, QUINTIC)])
def test_divided_parameters_are_refused(make):
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.to_local = lambda: None
    with pytest.raises(UsageError, match="needs whole parameters; use muon, or the strategy ddp"):
        make([{"params": [parameter], "lr": 0.1}])


@pytest.mark.parametrize("kind", ["soap", "soap_muon"])
def test_a_training_resumes_exactly(kind, tmp_path):
    tables = {
        "model": {"type": "xllama", "context": 16, "dim": 32, "n_layers": 1, "n_heads": 2},
        "trainer": {
            **{"type": "causal_lm", "steps": 6, "batch_size": 2, "eval_every": 3},
            "optimizer": {"type": kind, "lr": 0.01, "every": 2},
        },
    }

    def trained(folder, stops):
        for at in stops:
            trainer = build_trainer(Recipe.of(tables, kind, "SOAP"))
            fit(trainer, folder, resume=at != stops[0], stop_at=at, progress=False)
        return trainer.models["model"].state_dict()

    whole, parts = trained(tmp_path / "whole", [6]), trained(tmp_path / "parts", [3, 6])
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
