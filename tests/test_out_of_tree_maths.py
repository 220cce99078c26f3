"""The five attentions of third parties compute what their papers say: each against a naive reference in float64."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from axon_core import ROTARY_EMBEDDINGS
from axon_core.config import validate
from axon_core.interfaces.scope import Scope

N, DIM, HEADS = 11, 24, 3


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (Path(__file__).parent / "out_of_tree").iterdir():
        monkeypatch.syspath_prepend(str(folder))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"axon_test_{name}")


def build(cls: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    config = validate(cls.Config, {"dim": DIM, "n_heads": HEADS, **options})
    rotary = ROTARY_EMBEDDINGS.build("rotary", dim=config.rotary_dim, context=32) if config.rotary_dim else None
    return cls(config, rotary).double().eval()


def run(attention: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return attention(x, Scope.over(x))


def heads(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.T).unflatten(-1, (HEADS, -1))


def rotated(attention: Any, *parts: Tensor) -> tuple[Tensor, ...]:
    table = attention.rotary(torch.arange(N).unsqueeze(0))
    return tuple(table(part) for part in parts)


def token_by_token(q: Tensor, k: Tensor, v: Tensor, score: Callable[[int, int, int], float], window: int = N) -> Tensor:
    """softmax(q·k/√d + score) v, one query, head and key at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.double)
    for i in range(N):
        for h in range(q.shape[2]):
            js = range(max(0, i - window + 1), i + 1)
            scores = [(q[0, i, h] @ k[0, j, h]).item() / math.sqrt(q.shape[-1]) + score(h, i, j) for j in js]
            weights = torch.tensor(scores, dtype=torch.double).softmax(0)
            out[0, i, h] = sum(w * v[0, j, h] for w, j in zip(weights, js, strict=True))
    return out


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, N, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_sliding_window_sees_the_last_tokens_alone(x: Tensor) -> None:
    attention = build(load("sliding").SlidingWindowAttention, window=4)
    q, k, v = (heads(x, w) for w in attention.qkv.projection.weight.chunk(3))
    q, k = rotated(attention, q, k)
    want = token_by_token(q, k, v, lambda h, i, j: 0.0, window=4).flatten(-2) @ attention.out.weight.T
    torch.testing.assert_close(run(attention, x), want)


@pytest.mark.parametrize(
    ("n_heads", "exponents"),
    [
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),  # "for 8 heads … 1/2^1, 1/2^2, …, 1/2^8" (Section 3)
        (16, [0.5 * i for i in range(1, 17)]),  # "for 16 heads … 1/2^0.5, 1/2^1, …" (Section 3)
        (6, [2, 4, 6, 8, 1, 3]),  # between two powers of two: four heads' slopes, then every second of eight's
    ],
)
def test_alibi_slopes(n_heads: int, exponents: list[float]) -> None:
    assert load("alibi").slopes(n_heads) == pytest.approx([2**-e for e in exponents])


@torch.no_grad()
def test_alibi_lowers_scores_in_proportion_to_distance(x: Tensor) -> None:
    module = load("alibi")
    attention = build(module.AlibiAttention)
    q, k, v = (heads(x, w) for w in attention.qkv.projection.weight.chunk(3))
    slope = module.slopes(HEADS)
    want = token_by_token(q, k, v, lambda h, i, j: -slope[h] * (i - j)).flatten(-2) @ attention.out.weight.T
    torch.testing.assert_close(run(attention, x), want)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "initial"), [(0, 0.2), (3, 0.8 - 0.6 * math.exp(-0.9))])
def test_differential_attention_is_the_difference_of_two_maps(x: Tensor, layer: int, initial: float) -> None:
    attention = build(load("differential").DifferentialAttention, layer=layer)
    q, k, v = ((x @ w.T).unflatten(-1, (HEADS, 2, -1)) for w in attention.qkv.projection.weight.chunk(3))
    v = v.flatten(-2)
    maps = [token_by_token(*rotated(attention, q[..., i, :], k[..., i, :]), v, lambda h, i, j: 0.0) for i in (0, 1)]
    lambda_ = (attention.q1 @ attention.k1).exp() - (attention.q2 @ attention.k2).exp() + initial
    difference = maps[0] - lambda_ * maps[1]
    normalised = difference / (difference.square().mean(-1, keepdim=True) + attention.norm.config.eps).sqrt()
    want = (1 - initial) * normalised.flatten(-2) @ attention.out.weight.T
    torch.testing.assert_close(run(attention, x), want, rtol=1e-5, atol=1e-7)  # λ is computed in float32


@torch.no_grad()
def test_latent_attention_makes_keys_and_values_from_one_latent(x: Tensor) -> None:
    attention = build(load("mla").LatentAttention)
    c = attention.config
    q, q_rope = heads(x, attention.query.weight).split((c.head_dim, c.rope_dim), -1)
    latent, k_rope = (x @ attention.down.weight.T).split((c.latent_dim, c.rope_dim), -1)
    latent = latent / (latent.square().mean(-1, keepdim=True) + attention.norm.config.eps).sqrt()
    q_rope, k_rope = rotated(attention, q_rope, k_rope.unsqueeze(2))
    k = torch.cat((heads(latent, attention.up_k.weight), k_rope.expand(-1, -1, HEADS, -1)), -1)
    v = heads(latent, attention.up_v.weight)
    out = token_by_token(torch.cat((q, q_rope), -1), k, v, lambda h, i, j: 0.0)
    torch.testing.assert_close(run(attention, x), out.flatten(-2) @ attention.out.weight.T)


@torch.no_grad()
def test_linear_attention_is_a_recurrent_network(x: Tensor) -> None:
    attention = build(load("linear").LinearAttention)
    q, k, v = (heads(x, w)[0] for w in attention.qkv.projection.weight.chunk(3))
    q, k = (torch.where(y > 0, y + 1, y.exp()) for y in (q, k))
    s, z = torch.zeros(HEADS, q.shape[-1], v.shape[-1], dtype=torch.double), torch.zeros(HEADS, q.shape[-1]).double()
    out = torch.zeros_like(v)
    for i in range(N):  # Eqs. 18 to 20
        for h in range(HEADS):
            s[h] += torch.outer(k[i, h], v[i, h])
            z[h] += k[i, h]
            out[i, h] = (q[i, h] @ s[h]) / (q[i, h] @ z[h])
    want = out.flatten(-2).unsqueeze(0) @ attention.out.weight.T
    torch.testing.assert_close(run(attention, x), want, rtol=1e-4, atol=1e-5)  # its sums are float32, and have an ε
