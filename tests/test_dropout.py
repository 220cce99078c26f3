"""Dropout by example: its share, what a mask depends on, independence, and the ways a pass runs twice or compiled."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from axon_core.nn import Dropout, drop, dropout_rows, replayed_dropout
from axon_core.randomness import Key

KEY = Key((0, "update"))


def masks(numbers: Tensor, shape: tuple[int, ...], p: float = 0.5, calls: int = 1, key: Key = KEY) -> list[Tensor]:
    """Return which numbers each call of a pass over examples of a shape keeps."""
    x = torch.ones(len(numbers), *shape, dtype=torch.float64)
    with dropout_rows(key, numbers):
        return [drop(x, p) != 0 for _ in range(calls)]


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9])
def test_it_drops_its_share_exactly_and_scales_up_the_rest(p: float) -> None:
    x = torch.ones(64, 50_000, dtype=torch.float64)
    with dropout_rows(KEY, torch.arange(64)):
        y = drop(x, p)
    dropped = (y == 0).double()
    spread = math.sqrt(p * (1 - p))
    assert abs(dropped.mean().item() - p) <= 4 * spread / math.sqrt(x.numel())
    assert ((dropped.mean(1) - p).abs() <= 5 * spread / math.sqrt(50_000)).all()  # of each row
    assert y[y != 0].unique().tolist() == [pytest.approx(1 / (1 - p), rel=1e-15)]


def test_the_gradient_passes_where_a_number_was_kept() -> None:
    x = torch.randn(3, 500, requires_grad=True)
    with dropout_rows(KEY, torch.arange(3)):
        y = drop(x, 0.3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


def test_an_examples_mask_depends_on_its_number_alone() -> None:
    shape, numbers = (4, 6, 5), torch.arange(8)
    whole = masks(numbers, shape, calls=3)
    order = torch.tensor([5, 0, 7])
    for mask, other in zip(whole, masks(order, shape, calls=3), strict=True):
        assert torch.equal(other, mask[order])
    (longer,) = masks(numbers, (9, 6, 5))  # padded rows
    assert torch.equal(longer[:, :4], whole[0])


def test_a_mask_does_not_depend_on_how_numbers_lie_in_memory() -> None:
    numbers, x = torch.arange(3), torch.ones(3, 4, 6, 5)
    plain = masks(numbers, (4, 6, 5))[0]
    with dropout_rows(KEY, numbers):
        y = drop(x.contiguous(memory_format=torch.channels_last), 0.5)
    assert torch.equal(y != 0, plain) and y.is_contiguous(memory_format=torch.channels_last)


def test_an_example_may_have_several_rows() -> None:
    numbers, x = torch.tensor([4, 2]), torch.ones(6, 100)
    with dropout_rows(KEY, numbers):
        three = drop(x, 0.5)
    with dropout_rows(KEY, numbers[1:]):
        assert torch.equal(drop(x[3:], 0.5), three[3:])
    assert len({tuple(row.tolist()) for row in three}) == 6


def test_seeds_numbers_and_calls_have_masks_of_their_own() -> None:
    numbers = torch.tensor([0, 1, 2**40])
    drawn = [*masks(numbers, (300,), calls=200), *masks(numbers, (300,), calls=200, key=KEY("other"))]
    rows = torch.cat(drawn).unique(dim=0)
    assert len(rows) == 2 * 200 * 3


def test_masks_are_independent() -> None:
    """Correlations of rows, calls and seeds, and of places, are those of independent coins: χ² with its degrees."""
    drawn = [
        mask
        for seed in range(2)
        for mask in masks(torch.arange(32), (1500,), calls=70, key=Key((seed,)))[::7]  # of more than one block
    ]
    coins = torch.cat(drawn).double() * 2 - 1
    for signs in (coins, coins.T):
        n, samples = signs.shape
        correlations = (signs @ signs.T / math.sqrt(samples))[*torch.triu_indices(n, n, 1)]
        degrees = len(correlations)
        assert abs(correlations.square().sum().item() - degrees) < 6 * math.sqrt(2 * degrees)
        assert correlations.abs().max() < 6.5
    for steps in itertools.combinations((0, 1, 2, 3, 8), 3):  # neighbours, three at a time
        product = math.prod((coins.roll(step, 1) for step in steps), start=torch.ones(()))
        assert abs(product.mean().item()) < 5 / math.sqrt(coins.numel())


def test_neighbouring_numbers_and_calls_are_independent_at_small_shares() -> None:
    p, numbers = 0.05, torch.arange(64)
    first, second = (mask.logical_not().double() for mask in masks(numbers, (20_000,), p, calls=2))
    for one, other in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        both = (one * other).mean().item()
        assert abs(both - p**2) < 5 * p / math.sqrt(one.numel())


def test_a_part_that_runs_again_in_the_backward_pass_draws_the_same() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(16, 16), Dropout(0.5), torch.nn.Tanh()) for _ in range(3)]
    shared, x = Dropout(0.3), torch.randn(4, 16)

    def gradients(run) -> list[Tensor]:
        with dropout_rows(KEY, torch.arange(4)):
            y = shared(x)
            for layer in layers:
                y = shared(run(layer, y))
        y.square().sum().backward()
        return [p.grad for layer in layers for p in layer.parameters()]

    plain = [gradient.clone() for gradient in gradients(lambda layer, y: layer(y))]
    for layer in layers:
        layer.zero_grad()
    again = gradients(lambda layer, y: checkpoint(layer, y, use_reentrant=False, context_fn=replayed_dropout))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_a_compiled_pass_draws_the_same_and_is_compiled_once() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    layers = torch.nn.Sequential(Dropout(0.3), torch.nn.Tanh(), Dropout(0.5))
    compiled = torch.compile(layers, dynamic=False, fullgraph=True)
    x, before = torch.randn(4, 50), counters["stats"]["unique_graphs"]
    for update in range(3):
        with dropout_rows(KEY(update), numbers := torch.arange(4) + update):
            y = compiled(x)
        with dropout_rows(KEY(update), numbers):
            torch.testing.assert_close(y, layers(x))
    assert counters["stats"]["unique_graphs"] == before + 1


def test_elsewhere_torchs_generator_decides() -> None:
    x = torch.ones(4, 100)
    torch.manual_seed(0)
    want = torch.nn.functional.dropout(x, 0.3)
    torch.manual_seed(0)
    assert torch.equal(drop(x, 0.3), want)
    torch.manual_seed(0)
    with dropout_rows(KEY, torch.arange(3)):  # four rows are not three examples'
        assert torch.equal(drop(x, 0.3), want)


def test_a_module_rests_in_evaluation_and_refuses_other_shares() -> None:
    x = torch.ones(4, 100)
    assert Dropout(0.3).eval()(x) is x and Dropout(0.0)(x) is x
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"
    for p in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"the share of features to drop must be at least 0 and below 1, got"):
            Dropout(p)


def test_a_pass_within_a_pass_leaves_the_outer_one_as_it_was() -> None:
    first, second = masks(torch.arange(2), (50,), calls=2)
    with dropout_rows(KEY, torch.arange(2)):
        assert torch.equal(drop(torch.ones(2, 50), 0.5) != 0, first)
        masks(torch.arange(3), (9,))
        assert torch.equal(drop(torch.ones(2, 50), 0.5) != 0, second)
