"""Raters of preferences: known answers, what EM raises, the mirror image, and the posterior of a reliability."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_advise.raters import (
    ItemLabels,
    fit_bradley_terry,
    fit_items,
    fit_items_by_em,
    label_logprob,
    labels_logprob,
    reliability_posterior,
    reliability_update,
    right_posterior,
)
from axon_core import ConfigError, DataError

PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
SECOND_WINS = [[14, 17, 18, 14, 18, 16], [13, 15, 16, 13, 15, 14], [7, 5, 4, 7, 5, 6]]


def labels_of(second_wins, total=20):
    rows = [
        row
        for rater, wins in enumerate(second_wins)
        for (i, j), n in zip(PAIRS, wins, strict=True)
        for row in ((j, i, rater, n), (i, j, rater, total - n))
        if row[3]
    ]
    better, worse, rater, count = map(torch.tensor, zip(*rows, strict=True))
    return ItemLabels(better, worse, rater, count.double())


def close(got, want, tolerance=1e-4):
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=tolerance)


LABELS = labels_of(SECOND_WINS)


def test_known_answer_and_its_mirror_image():
    fit = fit_items_by_em(LABELS)
    close(fit.rewards, [0, 1.0751, 2.1619, 3.8277])
    close(fit.reliability, [0.9321, 0.8027, 0.1973])
    assert fit.objective == pytest.approx(-197.2738, abs=1e-4)
    mirror = fit_items_by_em(LABELS, start=0.25)
    close(mirror.rewards, (-fit.rewards).tolist())
    close(mirror.reliability, (1 - fit.reliability).tolist())
    assert mirror.objective == pytest.approx(fit.objective, abs=1e-6)


def test_from_a_half_nothing_moves():
    fit = fit_items_by_em(LABELS, start=0.5)
    close(fit.reliability, [0.5, 0.5, 0.5])
    assert fit.objective == pytest.approx(360 * math.log(0.5), abs=1e-9)


def test_known_answer_with_a_prior():
    fit = fit_items(LABELS)
    close(fit.rewards, [0, 1.0625, 2.1366, 3.7805])
    close(fit.reliability, [0.9470, 0.8304, 0.2898])
    assert fit.anchor == "prior"


def test_known_answer_of_the_pooled_fit():
    close(fit_bradley_terry(LABELS, torch.ones_like(LABELS.count)), [0, 0.1889, 0.4095, 0.7019])


def test_what_chooses_between_the_mirror_images():
    pooled = fit_items(LABELS, prior=(1, 1))
    assert pooled.anchor == "pooled"
    close(pooled.reliability, [0.9321, 0.8027, 0.1973])
    gold = fit_items(LABELS, prior=(1, 1), trusted=torch.tensor([math.nan, math.nan, 0.999], dtype=torch.float64))
    assert gold.anchor == "trusted"
    assert (gold.reliability[:2] < 0.5).all() and (gold.rewards[1:] < 0).all()


def test_labels_of_only_adversaries_fit_the_opposite_reward():
    """Nothing in the labels says otherwise, which is why the report says what the anchor is."""
    honest, adversaries = labels_of(SECOND_WINS[:2]), labels_of([[20 - n for n in wins] for wins in SECOND_WINS[:2]])
    found, opposite = fit_items(honest), fit_items(adversaries)
    close(opposite.rewards, (-found.rewards).tolist())
    close(opposite.reliability, found.reliability.tolist())


def test_a_reward_of_each_pair_alone_cannot_tell_reliability_from_closeness():
    """Only (2C − 1) tanh(Δ/2) enters the probability of a label."""
    one = label_logprob(*torch.cartesian_prod(torch.tensor([0.5, 1, 2]), torch.tensor([0.95, 0.8, 0.2])).unbind(1))
    c = torch.tensor([0.9286, 0.7857, 0.2143])
    other = label_logprob(*torch.cartesian_prod(torch.tensor([0.5261, 1.0596, 2.1954]), c).unbind(1))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_steps_against_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(30, generator=generator, dtype=torch.float64) * 3
    raters = torch.randint(3, (30,), generator=generator)
    counts = torch.randint(1, 5, (30,), generator=generator).double()
    c, alpha, beta = [0.9, 0.6, 0.2], 9.0, 2.0
    sums, sizes, total = [0.0] * 3, [0.0] * 3, 0.0
    for d, m, n in zip(delta.tolist(), raters.tolist(), counts.tolist(), strict=True):
        right, wrong = c[m] / (1 + math.exp(-d)), (1 - c[m]) / (1 + math.exp(d))
        sums[m] += n * right / (right + wrong)
        sizes[m] += n
        total += n * math.log(right + wrong)
    total += sum((alpha - 1) * math.log(x) + (beta - 1) * math.log(1 - x) for x in c)
    reliability = torch.tensor(c, dtype=torch.float64)
    gamma = right_posterior(delta, reliability[raters])
    want = [(s + alpha - 1) / (n + alpha + beta - 2) for s, n in zip(sums, sizes, strict=True)]
    close(reliability_update(gamma, raters, counts, 3, (alpha, beta)), want, 1e-12)
    found = labels_logprob(delta, raters, counts, reliability, (alpha, beta)).item()
    assert found == pytest.approx(total, rel=1e-12)


def test_the_gradient_is_that_of_soft_labels():
    """∂ ln P / ∂Δ = γ − σ(Δ)."""
    delta = torch.linspace(-8, 8, 41, dtype=torch.float64, requires_grad=True)
    for c in (0.05, 0.5, 0.8, 1.0):
        reliability = torch.full_like(delta, c).detach()
        (grad,) = torch.autograd.grad(label_logprob(delta, reliability).sum(), delta)
        want = right_posterior(delta, reliability) - delta.sigmoid()
        torch.testing.assert_close(grad, want.detach(), rtol=0, atol=1e-12)


@given(
    wins=st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=3),
    start=st.floats(0.05, 0.95),
    prior=st.sampled_from([(1.0, 1.0), (9.0, 1.0), (2.0, 3.0)]),
)
@settings(max_examples=25, deadline=None)
def test_no_round_lowers_the_objective(wins, start, prior):
    labels = labels_of(wins, total=9)
    found = [fit_items_by_em(labels, start, prior, rounds=rounds).objective for rounds in range(1, 6)]
    for before, after in pairwise(found):
        assert after >= before - 1e-9


def test_the_posterior_where_it_is_known():
    """With certain Δ a label is a right or a wrong answer, and the posterior is a Beta distribution."""
    delta = torch.tensor([60.0] * 7 + [-60.0] * 3 + [60.0] * 400 + [-60.0] * 1600)
    raters = torch.tensor([0] * 10 + [1] * 2000)
    mean, error = reliability_posterior(delta, raters, 3, (9.0, 1.0))
    shapes = [(16.0, 4.0), (409.0, 1601.0), (9.0, 1.0)]
    close(mean, [a / (a + b) for a, b in shapes], 1e-6)
    close(error, [math.sqrt(a * b / (a + b + 1)) / (a + b) for a, b in shapes], 1e-6)


def test_the_posterior_s_mode_is_em_s_fixed_point():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(4000, generator=generator, dtype=torch.float64) * 2
    right = torch.rand(4000, generator=generator) < 0.7
    wins = torch.rand(4000, generator=generator) < delta.sigmoid()
    delta = torch.where(wins == right, delta, -delta)
    zero, c = torch.zeros(4000, dtype=torch.long), torch.tensor([0.75], dtype=torch.float64)
    for _ in range(300):
        c = reliability_update(right_posterior(delta, c[zero]), zero, torch.ones_like(delta), 1)
    mean, error = reliability_posterior(delta, zero, 1, (1.0, 1.0))
    assert abs(c.item() - mean.item()) < 0.05 * error.item()
    assert abs(mean.item() - 0.7) < 3 * error.item()


def test_bad_labels_are_refused():
    one = torch.tensor([0])
    with pytest.raises(DataError, match="there are none"):
        ItemLabels(*([torch.tensor([], dtype=torch.long)] * 3), torch.tensor([]))
    with pytest.raises(DataError, match="two different items, but label 0 has item 0 twice"):
        ItemLabels(one, one, one, torch.ones(1))
    with pytest.raises(DataError, match="positive numbers, got 0"):
        ItemLabels(one, one + 1, one, torch.zeros(1))
    with pytest.raises(ConfigError, match="at least 1"):
        fit_items(LABELS, prior=(0.5, 1))


def test_labels_that_all_agree_give_finite_rewards():
    fit = fit_items(ItemLabels(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0])))
    assert fit.rewards.isfinite().all() and fit.rewards[1] > 1 and 0 <= fit.reliability[0] <= 1
