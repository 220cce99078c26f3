"""Causal attention in blocks of queries, against attention one query at a time in float64."""

from __future__ import annotations

import pytest
import torch
from test_attention import naive, normal

from axon_core.interfaces.scope import Scope
from axon_core.nn import _causal_cpu
from axon_core.nn._causal_cpu import causal_attention, is_faster
from axon_core.nn.attention import attend


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (11, 11), (5, 12), (3, 9), (1, 7)])  # whole blocks, a rest, with a past
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_blocks_are_the_attention_of_one_query_after_another(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, n: int, m: int, groups: int
) -> None:
    monkeypatch.setattr(_causal_cpu, "_BLOCK", 4)
    q, k, v = normal(2, n, 6, 8, dtype=dtype), normal(2, m, groups, 8, seed=1), normal(2, m, groups, 5, seed=2)
    k, v = k.to(dtype), v.to(dtype)
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
    for scale in (None, 0.7):
        out = causal_attention(q, k, v, scale)
        assert out.dtype == dtype
        expected = naive(q, k, v, mask, scale).to(dtype)
        torch.testing.assert_close(out, expected, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-6)


def test_nothing_depends_on_what_is_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_causal_cpu, "_BLOCK", 4)
    q, k, v = (normal(1, 11, heads, 8, seed=heads) for heads in (4, 2, 2))
    before = causal_attention(q, k, v)
    k[:, 6:], v[:, 6:] = float("inf"), float("nan")
    assert torch.equal(causal_attention(q, k, v)[:, :4], before[:, :4])  # another block: nothing was multiplied
    v[:, 6:] = 1e6
    assert torch.equal(causal_attention(q, k, v)[:, :6], before[:, :6])


def test_attend_takes_blocks_where_they_pay_and_torchs_kernel_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def spy(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        taken.append(q.shape[1])
        return causal_attention(q, *rest)

    monkeypatch.setattr("axon_core.nn.attention.causal_attention", spy)
    n, few = _causal_cpu._FEWEST, _causal_cpu._FEWEST - 1
    q, k, v = (normal(1, n, heads, 8, seed=heads, dtype=torch.float32) for heads in (12, 2, 2))
    triangle = torch.ones(n, n, dtype=torch.bool).tril()
    plain = Scope.over(q[..., 0, 0])
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype) for x in (q, k, v)]
        expected = naive(*inputs, triangle).to(dtype)
        torch.testing.assert_close(attend(*inputs, plain), expected, rtol=torch.finfo(dtype).eps, atol=2e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which rounds nothing
        torch.testing.assert_close(attend(q, k, v, plain), naive(q, k, v, triangle).float(), rtol=1e-5, atol=2e-6)
    with torch.no_grad():
        attend(q.clone().requires_grad_(), k, v, plain)
    assert taken == [n] * 4
    attend(q[:, :few], k[:, :few], v[:, :few], Scope.over(q[:, :few, 0, 0]))
    attend(q, k, v, Scope.over(q[..., 0, 0], causal=False))
    attend(q, k, v, Scope.over(q[..., 0, 0], valid=torch.arange(n).unsqueeze(0) > 2))
    attend(q, k, v, plain, narrow=lambda query, key: query - key < 5)
    assert attend(q, k.clone().requires_grad_(), v, plain).requires_grad
    assert taken == [n] * 4


def test_they_do_not_pay_for_more_keys_than_a_cache_holds() -> None:
    q, k = torch.zeros(1, 512, 8, 1), torch.zeros(1, 2048, 8, 1)
    some = k[:, :1024]
    assert is_faster(q, some, some)
    assert not is_faster(q, k, k)
    assert not is_faster(q.expand(16, -1, -1, -1), some.expand(16, -1, -1, -1), some.expand(16, -1, -1, -1))
    assert not is_faster(q[:, :, :1], some[:, :, :1], some[:, :, :1])  # over before it has begun
    assert not is_faster(q.to("meta"), some, some)
    assert not is_faster(q, some.double(), some.double())
