"""Attention under a scope against a naive float64 reference, and the numbers that usually go wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import QKV, attend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """One query at a time, in float64; `mask` and `bias` broadcast to (b h n m)."""
    (b, n, h, d), m, r = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    mask = mask.expand(b, h, n, m)
    bias = torch.zeros(()) if bias is None else bias
    bias = bias.double().expand(b, h, n, m)
    out = torch.zeros(b, n, h, v.shape[-1], dtype=torch.float64)
    for row in range(b):
        for i in range(n):
            for head in range(h):
                seen = mask[row, head, i]
                keys, values = k[row, seen, head // r].double(), v[row, seen, head // r].double()
                scores = keys @ q[row, i, head].double() * (d**-0.5 if scale is None else scale)
                out[row, i, head] = (scores + bias[row, head, i, seen]).softmax(0) @ values
    return out


@dataclass(frozen=True)
class Window:
    """The last `size` positions; more of them for each further head where `per_head`."""

    size: int
    per_head: int = 0

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        sizes = torch.tensor([self.size + 2 * i for i in range(self.per_head or 1)])[:, None, None]
        return query - key < sizes


@dataclass(frozen=True)
class Slopes:
    """A penalty for distance, another one for each head."""

    heads: int

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return -0.3 * (query - key).abs() * torch.arange(1, self.heads + 1)[:, None, None]


@st.composite
def padding(draw: st.DrawFn, b: int, n: int) -> Tensor | None:
    """None, or which tokens are valid: some of them, on the left or on the right."""
    if not draw(st.booleans()):
        return None
    counts = draw(st.lists(st.integers(0, n), min_size=b, max_size=b))
    valid = torch.arange(n) < torch.tensor(counts)[:, None]
    return valid.flip(1) if draw(st.booleans()) else valid


@settings(deadline=None, max_examples=80)
@given(
    data=st.data(),
    b=st.integers(1, 3),
    n=st.integers(1, 6),
    groups=st.integers(1, 3),
    r=st.integers(1, 3),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.7]),
    narrow=st.sampled_from([None, "alike", "per head"]),
    biased=st.booleans(),
)
def test_equals_the_naive_reference(data, b, n, groups, r, causal, scale, narrow, biased) -> None:
    h, valid = groups * r, data.draw(padding(b, n))
    scope = Scope.over(torch.zeros(b, n), causal=causal, valid=valid)
    between = None if narrow is None else Window(2, h if narrow == "per head" else 0)
    bias = Slopes(h) if biased else None
    q, k, v = normal(b, n, h, 4), normal(b, n, groups, 4, seed=1), normal(b, n, groups, 5, seed=2)
    expected = naive(q, k, v, scope.mask(n, between), scale, None if bias is None else scope.bias(n, bias, q.dtype))
    out = attend(q, k, v, scope, scale=scale, narrow=between, bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    single = attend(q.float(), k.float(), v.float(), scope, scale=scale, narrow=between, bias=bias)
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [None, Slopes(6)])
@pytest.mark.parametrize("narrow", [None, Window(3), Window(2, per_head=6)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_query_alone_equals_the_last_of_all(padded: bool, narrow: Window | None, bias: Slopes | None) -> None:
    n = 7
    q, k, v = normal(2, n, 6, 8), normal(2, n, 2, 8, seed=1), normal(2, n, 2, 8, seed=2)
    valid = torch.tensor([[False] * 3 + [True] * 4, [True] * 7]) if padded else None
    scope = Scope.over(q[..., 0, 0], valid=valid)
    keys = scope.positions.expand(2, -1)
    last = Scope(keys[:, -1:], keys, causal=True, padded=padded)
    whole = attend(q, k, v, scope, narrow=narrow, bias=bias)
    torch.testing.assert_close(attend(q[:, -1:], k, v, last, narrow=narrow, bias=bias), whole[:, -1:])


@pytest.mark.parametrize("n", [1, 5])
def test_gradients_equal_the_naive_ones(n: int) -> None:
    inputs = [normal(2, n, 4, 4), normal(2, 5, 2, 4, seed=1), normal(2, 5, 2, 4, seed=2)]
    scope = Scope(torch.arange(5 - n, 5).unsqueeze(0), torch.arange(5).unsqueeze(0), causal=True)

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves).square().sum(), leaves)

    mask = scope.mask(5)
    for got, expected in zip(
        gradients(lambda q, k, v: attend(q, k, v, scope)), gradients(lambda q, k, v: naive(q, k, v, mask)), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_ten_thousand_are_told_apart(dtype: torch.dtype, n: int, sign: int) -> None:
    # 10,000 and 9,999 are the same number in bfloat16, and 8 apart in float16: softmax would give ½ and ½.
    q = torch.tensor([100.0, 1.0], dtype=dtype).expand(1, n, 1, 2)
    k = torch.tensor([[sign * 100.0, 0.0], [sign * 100.0, -1.0]], dtype=dtype).view(1, 2, 1, 2)
    v = torch.tensor([1.0, 0.0], dtype=dtype).view(1, 2, 1, 1)
    scope = Scope(torch.full((1, n), 1), torch.arange(2).unsqueeze(0), causal=True)
    expected = torch.tensor(1.0).sigmoid().expand(1, n, 1, 1)
    torch.testing.assert_close(attend(q, k, v, scope, scale=1.0).float(), expected, rtol=5e-3, atol=0)


def test_scores_beyond_the_range_of_float16() -> None:
    q = torch.full((1, 2, 1, 4), 200.0, dtype=torch.float16)
    v = torch.tensor([1.0, 3.0], dtype=torch.float16).view(1, 2, 1, 1)
    out = attend(q, q, v, Scope.over(q[..., 0, 0]), scale=1.0)  # every score is 160,000; float16 ends at 65,504
    assert out.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_as_exact_as_its_inputs_and_output(dtype: torch.dtype) -> None:
    q, k, v = (normal(2, 6, heads, 16, seed=heads, dtype=dtype) for heads in (4, 2, 2))
    scope = Scope.over(q[..., 0, 0])
    out = attend(q, k, v, scope)
    assert out.dtype == dtype
    torch.testing.assert_close(out, naive(q, k, v, scope.mask(6)).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_does_not_round_the_scores() -> None:
    q, k, v = (normal(2, 6, 4, 16, seed=seed, dtype=torch.float32) for seed in range(3))
    scope = Scope.over(q[..., 0, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, scope)
    assert torch.equal(out, attend(q, k, v, scope))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, Slopes(4)])
def test_padding_is_finite_forward_and_backward(dtype: torch.dtype, bias: Slopes | None) -> None:
    valid = torch.tensor([[False] * 5, [False, False, True, True, True], [True, True, False, False, False]])
    inputs = [normal(3, 5, heads, 8, seed=heads, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]
    for causal in (True, False):
        out = attend(*inputs, Scope.over(valid, causal=causal, valid=valid), bias=bias)
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out[valid].float().square().sum(), inputs))


def test_the_layout_is_h_div_r_not_modulo() -> None:
    v = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 4, 3, 1)  # value head i holds i everywhere
    q, k = normal(1, 4, 6, 8, dtype=torch.float32), normal(1, 4, 3, 8, seed=1, dtype=torch.float32)
    for n in (1, 4):
        scope = Scope(torch.arange(4 - n, 4).unsqueeze(0), torch.arange(4).unsqueeze(0), causal=True)
        out = attend(q[:, -n:], k, v, scope)
        torch.testing.assert_close(out[0, :, :, 0], torch.tensor([0.0, 0, 1, 1, 2, 2]).expand(n, 6))


@pytest.mark.parametrize("bias", [False, True])
def test_the_projections_are_rows_of_queries_keys_values(bias: bool) -> None:
    torch.manual_seed(0)
    qkv = QKV(12, 4, 1, 3, bias=bias)
    x, memory = normal(2, 5, 12, dtype=torch.float32), normal(2, 7, 12, seed=1, dtype=torch.float32)
    rows = qkv.projection.weight.split((12, 3, 3))
    shifts = qkv.projection.bias.split((12, 3, 3)) if bias else (0, 0, 0)
    for y, parts in ((x, qkv(x)), (memory, qkv(x, memory))):
        q, k, v = (source @ w.T + s for source, w, s in zip((x, y, y), rows, shifts, strict=True))
        for part, expected, heads in zip(parts, (q, k, v), (4, 1, 1), strict=True):
            torch.testing.assert_close(part, expected.view(2, -1, heads, 3))
