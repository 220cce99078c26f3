"""Policy shaping and the estimation of consistencies: known answers, naive references, identities."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_advise.estimation import Answers, expectation_maximisation, log_likelihood, variational_inference
from axon_advise.shaping import any_optimal, log_odds, one_optimal, trainer_scores

GOOD = np.array([[[2, 0, 1], [2, 1, 1], [1, 1, 2]], [[0, 2, 1], [0, 2, 0], [2, 0, 1]]])  # state, trainer, action
BAD = np.array([[[0, 2, 1], [1, 1, 2], [2, 1, 0]], [[2, 1, 1], [1, 1, 2], [1, 2, 1]]])
UNIFORM = np.log(np.full((2, 3), 1 / 3))
HALF = np.full((1, 3), 0.5)


def test_one_trainer():
    scores = trainer_scores(np.array([[2.0, -1, 0, 0]]), log_odds(np.array([0.8])))
    assert one_optimal(scores) == pytest.approx([0.876712, 0.013699, 0.054795, 0.054795], abs=1e-6)
    assert any_optimal(scores) == pytest.approx([0.941176, 0.2, 0.5, 0.5], abs=1e-6)


def test_several_trainers():
    delta = np.array([[1.0, 0, -1, 0], [1, -1, 0, 0], [-2, 1, 1, 0]])
    scores = trainer_scores(delta, log_odds(np.array([0.9, 0.7, 0.2])))
    assert scores == pytest.approx([5.817111, -2.233592, -3.583519, 0], abs=1e-6)
    assert one_optimal(scores) == pytest.approx([0.996634, 0.000318, 0.000082, 0.002966], abs=1e-6)
    shaped = one_optimal(scores, np.log([0.1, 0.6, 0.2, 0.1]))
    assert shaped == pytest.approx([0.994971, 0.001904, 0.000165, 0.002961], abs=1e-6)
    assert one_optimal(trainer_scores(delta, log_odds(np.full(3, 0.8)))) == pytest.approx([0.25] * 4)


def test_expectation_maximisation():
    answers = Answers.of(GOOD, BAD, UNIFORM)
    first = expectation_maximisation(answers, HALF, rounds=1)
    assert first.consistency[0] == pytest.approx([0.5128, 0.5238, 0.5], abs=1e-4)
    end = expectation_maximisation(answers, HALF, rounds=1000, tolerance=1e-12)
    assert end.consistency[0] == pytest.approx([0.7684, 0.7133, 0.2865], abs=1e-4)
    assert log_likelihood(answers, end.consistency) == pytest.approx(-25.9658, abs=1e-4)
    want = [[0.9977, 0.0013, 0.0009], [0.0003, 0.9966, 0.0031]]
    assert answers.posterior(end.weight) == pytest.approx(np.array(want), abs=1e-4)
    mirror = expectation_maximisation(answers, np.full((1, 3), 0.4), rounds=1000, tolerance=1e-12)
    assert mirror.consistency[0] == pytest.approx([0.3165, 0.4679, 0.6095], abs=1e-4)
    assert log_likelihood(answers, mirror.consistency) == pytest.approx(-28.1448, abs=1e-4)
    several = Answers.of(GOOD, BAD, UNIFORM, several=True)
    end = expectation_maximisation(several, HALF, rounds=1000, tolerance=1e-12)
    assert end.consistency[0] == pytest.approx([0.7488, 0.6908, 0.3030], abs=1e-4)


def test_variational_inference():
    end = variational_inference(Answers.of(GOOD, BAD, UNIFORM), np.zeros((1, 3)), rounds=1000, tolerance=1e-12)
    assert end.consistency[0] == pytest.approx([0.7320, 0.6861, 0.3137], abs=1e-4)


def test_two_actions_cannot_tell_a_trainer_from_its_mirror():
    good, bad = np.array([[[5, 1]], [[1, 4]]]), np.array([[[1, 5]], [[4, 0]]])
    answers = Answers.of(good, bad, np.log(np.full((2, 2), 0.5)))
    fixed = expectation_maximisation(answers, np.full((1, 1), 0.5))
    assert fixed.consistency == pytest.approx(0.5)
    for c in (0.1, 0.3, 0.45):
        mirrored = [np.array([[x]]) for x in (c, 1 - c)]
        assert log_likelihood(answers, mirrored[0]) == pytest.approx(log_likelihood(answers, mirrored[1]))


counts = st.lists(st.integers(0, 4), min_size=2 * 24, max_size=2 * 24)


@settings(max_examples=60, deadline=None)
@given(counts, st.lists(st.floats(0.02, 0.98), min_size=4, max_size=4), st.booleans())
def test_no_round_lowers_the_likelihood(numbers, start, several):
    good, bad = np.array(numbers).reshape(2, 4, 2, 3)
    prior = np.random.default_rng(sum(numbers)).normal(size=(4, 3))
    answers = Answers.of(good, bad, prior, np.array([0, 0, 1, 1]), 2, several=several)
    c = np.array(start).reshape(2, 2)
    for _ in range(5):
        new = expectation_maximisation(answers, c, rounds=1, tolerance=0).consistency
        assert (log_likelihood(answers, new) >= log_likelihood(answers, c) - 1e-9).all()
        c = new


def naive_round(good, bad, prior, c, several):
    """One round of expectation maximisation over all states in plain Python, in float64."""
    states, trainers, actions = good.shape
    right = [0.0] * trainers
    for s in range(states):
        weights = []
        for o in range(actions):
            p = prior[s][o]
            for m, a in itertools.product(range(trainers), range(actions)):
                if several and a != o:
                    continue
                is_right = c[m] if a == o else 1 - c[m]
                p *= is_right ** good[s, m, a] * (1 - is_right) ** bad[s, m, a]
            if several:
                q = 1 - prior[s][o]
                for m in range(trainers):
                    q *= (1 - c[m]) ** good[s, m, o] * c[m] ** bad[s, m, o]
                p /= p + q
            weights.append(p)
        total = 1.0 if several else sum(weights)
        for m, a in itertools.product(range(trainers), range(actions)):
            p = weights[a] / total
            right[m] += p * good[s, m, a] + (1 - p) * bad[s, m, a]
    return [right[m] / (good[:, m].sum() + bad[:, m].sum()) for m in range(trainers)]


@pytest.mark.parametrize("several", [False, True])
def test_a_round_equals_the_naive_loop(several):
    rng = np.random.default_rng(3)
    good, bad = rng.integers(0, 4, size=(2, 12, 3, 4))
    prior = rng.dirichlet(np.ones(4), size=12)
    c = rng.uniform(0.1, 0.9, size=(3, 3))
    trial = np.repeat([0, 2], [7, 5])  # trial 1 has no answers
    got = expectation_maximisation(
        Answers.of(good, bad, np.log(prior), trial, 3, several=several), c, rounds=1, tolerance=0
    )
    assert got.consistency[1] == pytest.approx(c[1])
    for t in (0, 2):
        mine = trial == t
        assert got.consistency[t] == pytest.approx(
            naive_round(good[mine], bad[mine], prior[mine], c[t], several), 1e-12
        )


def test_variational_and_exact_posterior_agree():
    """The exact posterior enumerates what is optimal in each state; each case has a Beta posterior of its own."""
    rng = np.random.default_rng(0)
    optimal = rng.integers(0, 3, size=4)
    right = rng.random((4, 2, 3, 12)) < np.array([0.85, 0.25])[:, None, None]
    good = np.where(np.arange(3) == optimal[:, None, None], right.sum(-1), (~right).sum(-1))
    bad = 12 - good
    total, mean = 0.0, np.zeros(2)
    for case in itertools.product(range(3), repeat=4):
        weight, means = 1.0, []
        for m in range(2):
            r = sum(good[s, m, a] if a == case[s] else bad[s, m, a] for s in range(4) for a in range(3))
            w = 4 * 3 * 12 - r
            weight *= math.exp(math.lgamma(r + 1) + math.lgamma(w + 1) - math.lgamma(r + w + 2))
            means.append((r + 1) / (r + w + 2))
        total, mean = total + weight, mean + weight * np.array(means)
    answers = Answers.of(good, bad, np.zeros((4, 3)))
    start = np.array([[0.5, 0.0]])  # away from the symmetric point
    found = variational_inference(answers, start, rounds=500, tolerance=1e-12)
    assert found.consistency[0] == pytest.approx(mean / total, abs=0.005)
    assert answers.posterior(found.weight).argmax(1).tolist() == optimal.tolist()
