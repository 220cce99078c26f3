"""Attention over blocks: softmax attention of each token, with the same bits in decoding, in pieces and in company."""

import pytest
import torch

from axon_core import UsageError
from axon_core.interfaces import Scope
from axon_core.nn import attend, attend_blocks, scores_between
from axon_core.nn import block_attention as block_attention_module

SIZE = 16


@pytest.fixture(params=["compiled", "plain"])
def version(request, monkeypatch):
    """Both versions of the operator: as this machine compiles it, and in plain torch."""
    if request.param == "plain":
        monkeypatch.setattr(torch.ops.axon, "attend_blocks", block_attention_module._plain_attention)
    return request.param


class Pool:
    """Keys and values of several sequences in shuffled blocks, and queries at every position."""

    def __init__(self, lengths, h=4, groups=2, d=24, e=None, dtype=torch.float32, size=SIZE):
        torch.manual_seed(0)
        e, most = e or d, -(-max(lengths) // size)
        self.lengths, self.most = lengths, most
        self.keys = torch.randn(len(lengths) * most + 3, size, groups, d).to(dtype)
        self.values = torch.randn(len(lengths) * most + 3, size, groups, e).to(dtype)
        self.tables = torch.randperm(len(self.keys))[: len(lengths) * most].view(len(lengths), most).int()
        self.q = [torch.randn(length, h, d).to(dtype) for length in lengths]

    def sequence(self, row):
        return (x[self.tables[row]].flatten(0, 1)[: self.lengths[row]] for x in (self.keys, self.values))

    def attend(self, tokens, **options):
        """Attention of tokens (row, position) in one call."""
        q = torch.stack([self.q[row][position] for row, position in tokens])
        rows, positions = torch.tensor(tokens, dtype=torch.int32).T.contiguous()
        return attend_blocks(q, self.keys, self.values, self.tables, rows, positions + 1, **options)


def naive(q, k, v, *, window=None, scale=None, bias=None):
    """Causal softmax attention in float64, for every position of one sequence."""
    n, h, d = q.shape
    k, v = (x.double().repeat_interleave(h // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * (d**-0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.double().transpose(0, 1)
    position = torch.arange(n)
    hidden = position > position[:, None]
    if window is not None:
        hidden |= position <= position[:, None] - window
    return torch.einsum("hnm,mhe->nhe", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("h", "groups"), [(1, 1), (4, 4), (6, 2), (12, 4), (8, 1), (5, 1)])
@pytest.mark.parametrize(("d", "e"), [(24, 24), (64, 64), (7, 13), (33, 8), (128, 100)])
def test_it_is_softmax_attention(dtype, h, groups, d, e, version):
    pool = Pool([37], h, groups, d, e, dtype)
    expected = naive(pool.q[0], *pool.sequence(0))
    found = pool.attend([(0, i) for i in range(37)])
    assert found.dtype == dtype and found.shape == (37, h, e)
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_windows_blocks_and_scales(window, size, version):
    pool = Pool([50], size=size)
    expected = naive(pool.q[0], *pool.sequence(0), window=window, scale=0.3)
    found = pool.attend([(0, i) for i in range(50)], window=window, scale=0.3)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
def test_a_token_has_the_same_bits_in_any_company(dtype, window, version):
    lengths = [1, 15, 16, 17, 80, 133]
    pool = Pool(lengths, 6, 2, 40, dtype=dtype)
    every = [(row, i) for row, length in enumerate(lengths) for i in range(length)]
    expected = dict(zip(every, pool.attend(every, window=window), strict=True))
    for token in every[::7]:
        assert torch.equal(pool.attend([token], window=window)[0], expected[token])
    shuffled = [every[i] for i in torch.randperm(len(every))]
    for start in range(0, len(every), 29):  # pieces of several sequences, in any order
        piece = shuffled[start : start + 29]
        for token, found in zip(piece, pool.attend(piece, window=window), strict=True):
            assert torch.equal(found, expected[token])
    elsewhere = torch.randperm(len(pool.keys))  # other blocks, and a longer table
    pool.keys, pool.values = pool.keys[elsewhere], pool.values[elsewhere]
    pool.tables = torch.nn.functional.pad(elsewhere.argsort().int()[pool.tables], (0, 3))
    assert torch.equal(pool.attend(every, window=window), torch.stack([expected[token] for token in every]))


@pytest.mark.parametrize("heads", [1, 6])
def test_a_bias_and_hidden_keys(heads, version):
    pool = Pool([45, 9], 6, 2)
    slopes = torch.rand(heads).view(1, -1, 1, 1)
    tokens = [(0, i) for i in range(45)]
    seen = torch.arange(45) + 1

    def bias(query, key):
        return slopes * (key - query)

    def narrow(query, key):
        return (key == query) | (key % 3 == 1)

    added = scores_between(seen, 48, narrow=narrow, bias=bias)
    assert added.shape == (45, heads, 48)
    expected = naive(pool.q[0], *pool.sequence(0), bias=added[..., :45])
    together = pool.attend(tokens, bias=added)
    torch.testing.assert_close(together.double(), expected, atol=2e-6, rtol=2e-6)
    for i in (0, 20, 44):
        alone = scores_between(seen[i : i + 1], i + 1, narrow=narrow, bias=bias)
        assert torch.equal(pool.attend([(0, i)], bias=alone)[0], together[i])


def test_it_is_what_attend_computes(version):
    pool = Pool([30], 6, 2)
    k, v = pool.sequence(0)
    expected = attend(*(x.unsqueeze(0) for x in (pool.q[0], k, v)), Scope.over(torch.zeros(1, 30)))[0]
    torch.testing.assert_close(pool.attend([(0, i) for i in range(30)]), expected, atol=2e-6, rtol=2e-6)


def test_a_token_that_sees_nothing_is_zero(version):
    pool = Pool([20])
    rows, seen = torch.zeros(2, dtype=torch.int32), torch.tensor([0, 20], dtype=torch.int32)
    found = attend_blocks(pool.q[0][[0, 19]], pool.keys, pool.values, pool.tables, rows, seen)
    assert not found[0].any() and torch.equal(found[1], pool.attend([(0, 19)])[0])
    none = attend_blocks(pool.q[0][:0], pool.keys, pool.values, pool.tables[:, :0], rows[:0], seen[:0])
    assert none.shape == (0, 4, 24)


def test_threads_change_no_bit():
    pool, threads = Pool([300], 6, 2, 32), torch.get_num_threads()
    tokens, found = [(0, i) for i in range(0, 300, 3)], []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(pool.attend(tokens))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_does_not_fit_is_refused():
    pool = Pool([20])
    rows, seen = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(UsageError, match="must fit, with h a multiple of k"):
        attend_blocks(pool.q[0][:1, :3], pool.keys, pool.values, pool.tables, rows, seen)
    with pytest.raises(UsageError, match="a window must be at least 1, got 0"):
        attend_blocks(pool.q[0][:1], pool.keys, pool.values, pool.tables, rows, seen, window=0)
    with pytest.raises(UsageError, match="attention over blocks has no gradients"):
        attend_blocks(pool.q[0][:1].requires_grad_(), pool.keys, pool.values, pool.tables, rows, seen)
