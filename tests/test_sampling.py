"""Sampling: exact sets of kept tokens, and the right frequencies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_core.config import validate
from axon_core.errors import ConfigError
from axon_core.generation import sampling as module
from axon_core.generation.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, penalise, sample_tokens

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
    assert sample_tokens(logits, Sampling(temperature=0, repetition_penalty=2), seen=seen).tolist() == [1, 0]


def test_the_penalty_comes_before_the_filters():
    # 4 / 2 = 2 for token 0, so that token 1 leads, and the two of them are the top two.
    sampling = Sampling(repetition_penalty=2, top_k=2)
    logits, seen = torch.tensor([[4.0, 3.0, 0.0]]).expand(4, 3), torch.tensor([[True, False, False]]).expand(4, 3)
    first = torch.tensor([2.0, 3.0]).softmax(0)[0].item()
    uniform = torch.tensor([0.0, first - 1e-3, first + 1e-3, 1 - 2**-24])
    assert sample_tokens(logits, sampling, uniform, seen).tolist() == [0, 0, 1, 1]


def test_what_a_choice_needs_is_asked_for():
    with pytest.raises(ValueError, match="needs one uniform number per row"):
        sample_tokens(LOG, Sampling())
    with pytest.raises(ValueError, match="needs the tokens used so far"):
        sample_tokens(LOG, Sampling(repetition_penalty=1.1, temperature=0))


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


def sorting_top_k(logits, k):
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return logits.scatter(-1, order[:, k:], float("-inf"))


def sorting_top_p(logits, p):
    """The kept logits, and how close a decision was: rounding may decide those within 1e-12."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.double().softmax(-1)
    before = probability.cumsum(-1) - probability
    kept = logits.masked_fill(torch.zeros_like(before > p).scatter(-1, order, before > p), float("-inf"))
    return kept, (before - p).abs().amin().item()


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_filters_agree_with_sorting_everything(data):
    """Batches with many ties and tokens that are ruled out, rows that need few tokens beside rows that need all."""
    rows, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 24))
    level = st.one_of(st.integers(-4, 4).map(float), st.just(float("-inf")), st.floats(-30, 30))
    row = st.lists(level, min_size=size, max_size=size).map(lambda row: [0.0, *row])  # one of them is finite
    flat = st.just([0.0] * (size + 1))
    logits = torch.tensor(data.draw(st.lists(st.one_of(row, flat), min_size=rows, max_size=rows)))
    logits = logits.to(data.draw(st.sampled_from([torch.float32, torch.float64])))
    k = data.draw(st.integers(1, size + 2))
    p = data.draw(st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.999, 1 - 2**-52, 1.0])))
    few = keep_top_k(logits, k)
    assert torch.equal(few, sorting_top_k(logits, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOP", data.draw(st.integers(1, size + 2)))
        for given_logits, finite in ((logits, None), (few, k)):
            expected, margin = sorting_top_p(given_logits, p)
            if margin > 1e-12 or len(given_logits.unique()) == 1:
                assert torch.equal(keep_top_p(given_logits, p, finite), expected)
        if p < 1:
            alone = [keep_top_p(row.unsqueeze(0), p) for row in logits]
            assert torch.equal(keep_top_p(logits, p), torch.cat(alone))  # whatever stands beside it


def test_filters_of_a_large_vocabulary_agree_with_sorting_everything():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5000, generator=generator) * torch.tensor([0.1, 1, 2, 3, 4, 9]).unsqueeze(1)
    logits[2:4] = logits[2:4].round()  # thousands of ties
    for k in (1, 7, 50, 4999):
        assert torch.equal(keep_top_k(logits, k), sorting_top_k(logits, k))
    for p in (0.1, 0.5, 0.9, 0.95, 0.999):
        expected, margin = sorting_top_p(logits, p)
        assert margin > 1e-12
        assert torch.equal(keep_top_p(logits, p), expected)
        sizes = expected.isfinite().sum(-1)
    assert sizes.min() < module._TOP < sizes.max()


def test_temperature_zero_is_argmax_and_needs_no_randomness():
    assert sample_tokens(LOG, Sampling(temperature=0)).item() == 1


def test_inverse_transform_covers_every_token_in_proportion():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    drawn = sample_tokens(LOG.expand(10_000, 4), Sampling(), uniform)
    assert drawn.bincount(minlength=4).tolist() == [1000, 4000, 2000, 3000]


def test_temperature_sharpens():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    counts = sample_tokens(LOG.expand(10_000, 4), Sampling(temperature=0.5), uniform).bincount(minlength=4)
    expected = torch.tensor([1.0, 16.0, 4.0, 9.0]) / 30 * 10_000  # p² normalised
    assert (counts - expected).abs().max() <= 1


def test_a_filtered_token_is_never_drawn_at_the_edges_of_the_unit_interval():
    logits = torch.tensor([[1.0, 5.0, 4.0, 0.0]])
    for uniform in (0.0, 1 - 2**-24):
        assert sample_tokens(logits, Sampling(top_k=2), torch.tensor([uniform])).item() in (1, 2)


def test_half_precision_logits_of_large_size():
    logits = torch.tensor([[-1e4, 1e4, 0.0]], dtype=torch.float16)
    assert sample_tokens(logits, Sampling(top_p=0.9), torch.tensor([0.999])).item() == 1


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
    assert sample_tokens(logits, Sampling(temperature=1e-39), torch.tensor([0.99])).item() == 1
