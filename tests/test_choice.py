"""The best tokens of a row: what a sort of its log-probabilities begins with, whatever stands beside."""

import pytest
import torch

from axon_core import UsageError
from axon_core.nn import best_tokens, compile_kernels
from axon_core.nn import choice as choice_module


@pytest.fixture(params=["compiled", "plain"])
def version(request, monkeypatch):
    """Both versions of the operator: as this machine compiles it, and in plain torch."""
    compile_kernels()
    if request.param == "plain":
        monkeypatch.setattr(torch.ops.axon, "best_tokens", choice_module._plain_best)
    return request.param


def naive(row, k, limit, without):
    """Log-probabilities and ids in float64, by sorting."""
    logprobs = row.double().log_softmax(-1).tolist()
    ids = sorted((i for i in range(limit) if i != without), key=lambda i: (-logprobs[i], i))[:k]
    return [logprobs[i] for i in ids], ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("v", "k"), [(1, 1), (5, 4), (63, 8), (64, 1), (1000, 4), (1003, 9)])
def test_they_are_those_that_a_sort_finds(v, k, dtype, version):
    torch.manual_seed(v)
    rows = torch.stack([torch.randperm(v) * 7.0 / v for _ in range(6)]).to(dtype)
    rows += torch.tensor([0, 300, -300, 1e4, 0, 0], dtype=dtype).unsqueeze(1) if dtype != torch.bfloat16 else 0
    cases = [(v, None)] + ([(v - 1, 0), (v - 1, v - 1), (v, v - 1), (v, v // 2)] if v > k + 1 else [])
    for limit, without in cases:
        scores, ids = best_tokens(rows, k, limit=limit, without=without)
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for row, found, chosen in zip(rows, scores, ids, strict=True):
            expected, places = naive(row, k, limit, without)
            if dtype != torch.bfloat16:  # which has ties
                assert chosen.tolist() == places
            assert found.tolist() == pytest.approx(expected, abs=2e-3 if row.max() > 1e3 else 2e-5)


def test_of_equals_the_first_comes_first():
    compile_kernels()
    scores, ids = best_tokens(torch.zeros(2, 100), 5, without=1)
    assert ids.tolist() == [[0, 2, 3, 4, 5]] * 2
    assert torch.allclose(scores, torch.full((2, 5), 0.01).log())


def test_where_too_few_can_be_chosen_the_rest_are_impossible(version):
    scores, ids = best_tokens(torch.tensor([[1.0, 2.0, 3.0], [-torch.inf, 5.0, -torch.inf]]), 2, limit=2, without=1)
    assert ids[0, 0] == 0 and scores[0, 0].item() == pytest.approx(-2.4076, abs=1e-4)
    assert scores.isinf().tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(number, version):
    rows = torch.randn(3, 50)
    rows[1, 7] = number
    scores, _ = best_tokens(rows, 3)
    assert scores.isnan().all(1).tolist() == [False, True, False] and not scores[[0, 2]].isnan().any()


def test_a_row_has_the_same_bits_in_any_company_and_with_any_threads():
    compile_kernels()
    rows, threads = torch.randn(70, 999), torch.get_num_threads()
    expected = [best_tokens(row.unsqueeze(0), 4) for row in rows]
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            for together, alone in zip(best_tokens(rows, 4), zip(*expected, strict=True), strict=True):
                assert torch.equal(together, torch.cat(alone))
    finally:
        torch.set_num_threads(threads)


def test_sizes_that_do_not_fit():
    for k, limit in ((0, None), (4, 3), (1, 6)):
        with pytest.raises(UsageError, match="1 ≤ k ≤ limit ≤ 5"):
            best_tokens(torch.zeros(1, 5), k, limit=limit)
