"""Sampling: exact sets of kept tokens, and the right frequencies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_core.config import validate
from axon_core.errors import ConfigError
from axon_core.sampling import Sampling, choose, keep_min_p, keep_top_k, keep_top_p, penalise

LOG = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_a_token_while_the_probability_before_it_is_at_most_p(p, expected):
    assert kept(keep_top_p(LOG, p)) == expected


def test_top_p_of_ties_keeps_the_first():
    assert kept(keep_top_p(torch.zeros(1, 4), 0.0)) == [0]
    assert kept(keep_top_p(torch.zeros(1, 4), 0.25)) == [0, 1]  # 0.25 before token 1: at most p


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 2, 3])])
def test_top_k_keeps_the_k_largest(k, expected):
    assert kept(keep_top_k(LOG, k)) == expected


def test_top_k_keeps_exactly_k_of_ties():
    assert kept(keep_top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 2)) == [1, 2]


@pytest.mark.parametrize(
    ("p", "expected"),
    [(1.0, [1]), (0.76, [1]), (0.74, [1, 3]), (0.51, [1, 3]), (0.49, [1, 2, 3]), (0.24, [0, 1, 2, 3])],
)
def test_min_p_keeps_what_is_at_least_p_times_as_likely_as_the_likeliest(p, expected):
    assert kept(keep_min_p(LOG, p)) == expected


def test_min_p_of_ties_keeps_all_of_them():
    assert kept(keep_min_p(torch.tensor([[2.0, 1.0, 2.0]]), 1.0)) == [0, 2]


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalise(logits, seen, 4.0).tolist() == [[0.5, -8.0, 3.0, -3.0, 0.0]]
    assert penalise(logits, seen, 0.5).tolist() == [[4.0, -1.0, 3.0, -3.0, 0.0]]  # below 1 it rewards


def test_a_penalty_is_a_rows_own_and_counts_at_temperature_zero():
    logits = torch.tensor([[4.0, 3.0, 0.0]]).expand(2, 3)
    seen = torch.tensor([[True, False, False], [False, False, False]])
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2), seen=seen).tolist() == [1, 0]


def test_the_penalty_comes_before_the_filters():
    # 4 / 2 = 2 for token 0, so that token 1 leads, and the two of them are the top two.
    sampling = Sampling(repetition_penalty=2, top_k=2)
    logits, seen = torch.tensor([[4.0, 3.0, 0.0]]).expand(4, 3), torch.tensor([[True, False, False]]).expand(4, 3)
    first = torch.tensor([2.0, 3.0]).softmax(0)[0].item()
    uniform = torch.tensor([0.0, first - 1e-3, first + 1e-3, 1 - 2**-24])
    assert choose(logits, sampling, uniform, seen).tolist() == [0, 0, 1, 1]


def test_what_a_choice_needs_is_asked_for():
    with pytest.raises(ValueError, match="needs one uniform number a row"):
        choose(LOG, Sampling())
    with pytest.raises(ValueError, match="needs to know the tokens seen"):
        choose(LOG, Sampling(repetition_penalty=1.1, temperature=0))


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30), st.integers(1, 30), st.floats(0, 1))
@settings(deadline=None)
def test_filters_agree_with_a_naive_reference(values, k, p):
    logits = torch.tensor([values], dtype=torch.float64)
    order = sorted(range(len(values)), key=lambda i: (-logits[0, i].item(), i))
    assert kept(keep_top_k(logits, k)) == sorted(order[:k])
    probability = logits.softmax(-1)[0].tolist()
    before, expected = 0.0, []
    for i in order:
        if before <= p:
            expected.append(i)
        before += probability[i]
    got = kept(keep_top_p(logits, p))
    if got != sorted(expected):  # only where rounding decides
        assert min(abs(sum(probability[i] for i in order[:n]) - p) for n in range(len(order) + 1)) < 1e-12


def test_temperature_zero_is_argmax_and_needs_no_randomness():
    assert choose(LOG, Sampling(temperature=0)).item() == 1


def test_inverse_transform_covers_every_token_in_proportion():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    drawn = choose(LOG.expand(10_000, 4), Sampling(), uniform)
    assert drawn.bincount(minlength=4).tolist() == [1000, 4000, 2000, 3000]


def test_temperature_sharpens():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    counts = choose(LOG.expand(10_000, 4), Sampling(temperature=0.5), uniform).bincount(minlength=4)
    expected = torch.tensor([1.0, 16.0, 4.0, 9.0]) / 30 * 10_000  # p² normalised
    assert (counts - expected).abs().max() <= 1


def test_a_filtered_token_is_never_drawn_at_the_edges_of_the_unit_interval():
    logits = torch.tensor([[1.0, 5.0, 4.0, 0.0]])
    for uniform in (0.0, 1 - 2**-24):
        assert choose(logits, Sampling(top_k=2), torch.tensor([uniform])).item() in (1, 2)


def test_half_precision_logits_of_large_size():
    logits = torch.tensor([[-1e4, 1e4, 0.0]], dtype=torch.float16)
    assert choose(logits, Sampling(top_p=0.9), torch.tensor([0.999])).item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: must be greater than or equal to 0, got -1"),
        ({"top_k": 0}, "top_k: must be greater than or equal to 1, got 0"),
        ({"top_p": 1.5}, "top_p: must be less than or equal to 1, got 1.5"),
        ({"min_p": -0.1}, "min_p: must be greater than or equal to 0, got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be greater than 0, got 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError) as caught:
        validate(Sampling, options)
    assert str(caught.value) == message


def test_a_temperature_near_zero_is_argmax():
    logits = torch.tensor([[1.0, 3.0, 2.0, -4.0]])
    assert choose(logits, Sampling(temperature=1e-39), torch.tensor([0.99])).item() == 1
