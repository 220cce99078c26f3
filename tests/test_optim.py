"""Optimisers and schedules against references written out plainly."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Bigram, Toy

from axon_core.errors import UnknownKey
from axon_core.training.decay import WeightDecay
from axon_core.training.muon import COEFFICIENTS, MuonOptimizer, orthogonalise
from axon_core.training.optim import AdamW, Muon, schedule
from axon_core.training.train_state import TrainState

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48), (24, 16)]


def matrices(seed: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def coefficients(name: str, count: int) -> list[tuple[float, float, float]]:
    return [COEFFICIENTS[name](i) for i in range(count)]


@pytest.mark.parametrize("name", ["quintic", "polar"])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(name: str):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(3, 6, 10, generator=generator, dtype=torch.float64)
    result = orthogonalise(batch, coefficients(name, 5), torch.float64)
    for matrix, found in zip(batch, result, strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        s = s / (1.01 * matrix.norm() + 1e-7)
        for a, b, c in coefficients(name, 5):
            s = a * s + b * s**3 + c * s**5
        torch.testing.assert_close(found, u @ torch.diag(s) @ v)
        assert 0.6 < s.min() and s.max() < 1.3


def test_polar_comes_closer_to_orthogonal_the_more_iterations():
    batch = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for count in (3, 5, 8):
        result = orthogonalise(batch, coefficients("polar", count), torch.float64)
        errors.append((torch.linalg.svdvals(result) - 1).abs().max().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_muon_makes_the_update_written_out_plainly():
    ours, plain = matrices(0, torch.float64), [p.detach().clone() for p in matrices(0, torch.float64)]
    group = {"params": ours, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    optimizer = MuonOptimizer([group], coefficients("quintic", 5))
    momenta = [torch.zeros_like(p) for p in plain]
    for step in range(3):
        for i, gradient in enumerate(matrices(10 + step, torch.float64)):
            g = ours[i].grad = gradient.detach()
            momenta[i] = 0.9 * momenta[i] + 0.1 * g
            x = 0.1 * g + 0.9 * momenta[i]
            x = x / (x.norm() * 1.01 + 1e-7)
            for a, b, c in coefficients("quintic", 5):
                x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
            plain[i] = plain[i] * (1 - 0.1 * 0.2) - 0.1 * math.sqrt(max(1, x.shape[0] / x.shape[1])) * x
        optimizer.step()
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found.detach(), expected)


def test_muon_is_torchs_muon_up_to_bfloat16():
    ours, theirs = matrices(0), matrices(0)
    group = {"params": ours, "lr": 0.1, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = [
        MuonOptimizer([group], coefficients("quintic", 5)),
        torch.optim.Muon(theirs, lr=0.1, momentum=0.95, weight_decay=0.1),
    ]
    before = [p.detach().clone() for p in ours]
    for mine, other, gradient in zip(ours, theirs, matrices(1), strict=True):
        mine.grad, other.grad = gradient.detach(), gradient.detach().clone()
    for optimizer in optimizers:
        optimizer.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        step, reference = mine.detach() - start, other.detach() - start
        # Their start is 1 % larger, which the iteration evens out, and both round to 8 bits in every product.
        assert (step - reference).norm() < 0.05 * reference.norm()


def test_muon_shares_out_the_parameters():
    model = Bigram(20, 16, 0.0)
    config = Muon(lr=0.1, embedding_lr=0.2, head_lr=0.3, vector_lr=0.4, iterations=3)
    groups = [group for optimizer in config.build([model]) for group in optimizer.param_groups]
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {group["lr"]: [named[id(p)] for p in group["params"]] for group in groups} == {
        0.1: ["hidden.weight"],
        0.2: ["embedding.weight"],
        0.3: ["head.weight"],
        0.4: ["hidden.bias"],
    }


def test_a_tied_head_is_an_embedding_and_shared_parts_count_once():
    model = Bigram(20, 16, 0.0)
    model.head.weight = model.embedding.weight
    model.hidden_matrices = lambda: [model.hidden.weight, model.head.weight]
    optimizers = Muon().build([model, model])
    assert [len(group["params"]) for o in optimizers for group in o.param_groups] == [1, 1, 1]


def test_adamw_is_torchs_and_does_not_decay_vectors():
    model, other = Bigram(20, 16, 0.0), Bigram(20, 16, 0.0)
    (ours,) = AdamW(lr=0.1, weight_decay=0.5).build([model])
    decays = {id(p): group["weight_decay"] for group in ours.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "embedding.weight": 0.5, "hidden.weight": 0.5, "hidden.bias": 0.0, "head.weight": 0.5,
    }  # fmt: skip
    matrices = [p for p in other.parameters() if p.ndim > 1]
    theirs = torch.optim.AdamW(matrices, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.grad = its.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1))
    ours.step(), theirs.step()
    torch.testing.assert_close(model.head.weight, other.head.weight)


class Halving(WeightDecay):
    """A rule that halves the weights before each step."""

    def attach(self, optimizers):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
            optimizer.register_step_pre_hook(self.halve)

    def halve(self, optimizer, *_):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.5)


def test_a_rule_of_weight_decay_replaces_the_optimisers_own():
    def updated(rule=None, **options):
        trainer = Toy.make(optimizer={"type": "adamw", "lr": 0.1, "weight_decay": 0.5, **options})
        state = TrainState(trainer)
        if rule is not None:
            rule(rule.Config()).attach(state.optimizers)
        for parameter in state.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        before = {name: parameter.detach().clone() for name, parameter in state.parameters.items()}
        state.update(1.0)
        name = "model.head.weight"
        return (state.parameters[name].detach() / before[name]).mean().item()

    assert updated() == updated(decay="decoupled") == pytest.approx(0.95)
    assert updated(weight_decay=0.0) == 1
    assert updated(Halving) == pytest.approx(0.5)
    with pytest.raises(UnknownKey, match="no weight decay 'halvign' is installed"):
        updated(decay="halvign")


def test_schedules():
    def at(kind, *steps, **options):
        return [schedule(kind, step, steps=100, **options) for step in steps]

    assert at("constant", 0, 50, 99) == [1, 1, 1]
    assert at("constant", 0, 4, 9, 10, warmup=10) == [0.1, 0.5, 1, 1]
    assert at("linear", 0, 50, 100, 500) == [1, 0.5, 0, 0]
    assert at("linear", 10, 55, 100, warmup=10, final=0.2) == pytest.approx([1, 0.6, 0.2])
    assert at("cosine", 0, 25, 50, 100, final=0.1) == pytest.approx([1, 0.1 + 0.9 * (2 + math.sqrt(2)) / 4, 0.55, 0.1])
    # 1706.03762, Eq. 3, in steps counted from 1, divided by its peak.
    noam = [min((n + 1) ** -0.5, (n + 1) * 10**-1.5) * 10**0.5 for n in (0, 4, 9, 39, 89)]
    assert at("inverse_sqrt", 0, 4, 9, 39, 89, warmup=10) == pytest.approx(noam)
