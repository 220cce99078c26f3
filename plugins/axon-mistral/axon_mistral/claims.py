"""Checks of the paper's claims; `axon reproduce mistral` runs them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.interfaces import Cache, Scope
from axon_core.papers import Outcome
from axon_gqa import GroupedQueryAttention
from axon_mistral.attention import SlidingWindowAttention

_WINDOW = 4096
_DIM, _HEADS, _KV_HEADS = 512, 4, 1
"""A quarter of the heads of Mistral 7B, with the same share of key/value heads and the same head size."""


def span() -> Outcome:
    """Find how far back the features of the last token of several layers depend on the first features."""
    window, reached = 8, list[int]()
    for n_layers in (1, 2, 4):
        x = torch.randn(1, 64, 16, dtype=torch.float64, requires_grad=True)
        h: Tensor = x
        for layer in _layers(n_layers, window):
            h = h + layer(h, Scope.over(h))
        (gradient,) = torch.autograd.grad(h[0, -1].sum(), x)
        reached.append(64 - int((gradient[0].abs().sum(-1) > 0).nonzero()[0]))
    expected = [1 + n_layers * (window - 1) for n_layers in (1, 2, 4)]
    found = (
        f"windows of {window} reach {', '.join(map(str, reached))} tokens after 1, 2, 4 layers: 1 + n (W − 1), which"
    )
    return Outcome(reached == expected, f"{found} is {1 + 32 * (_WINDOW - 1):,} for 32 layers and W = {_WINDOW:,}")


def rolling_cache() -> Outcome:
    """Compare the allocated bytes for 32k tokens, and decode several windows with and without the cache."""
    whole, windowed = _pair()
    sizes = [
        Cache([part.state()], 1, 8 * _WINDOW, dtype=torch.bfloat16, device="cpu").nbytes for part in (whole, windowed)
    ]
    difference = _difference([1] * 40)
    found = (
        f"{sizes[0] / sizes[1]:g} times smaller for {8 * _WINDOW:,} tokens; decoding five windows changes the results"
    )
    return Outcome(sizes[0] == 8 * sizes[1] and difference < 1e-12, f"{found} by at most {difference:.0e}")


def chunks() -> Outcome:
    """Read a text in chunks of the window's size, and at once."""
    difference = _difference([8] * 5)
    return Outcome(difference < 1e-12, f"largest difference to one pass {difference:.0e}")


def faster() -> Outcome:
    """Time attention over 16K tokens with a window of 4096 and without, one after the other."""
    n = 4 * _WINDOW
    whole, windowed = _pair()
    x = torch.randn(1, n, _DIM, dtype=torch.float32)
    ratios = [
        _seconds(lambda: whole(x, Scope.over(x))) / _seconds(lambda: windowed(x, Scope.over(x))) for _ in range(3)
    ]
    found = f"{n:,} tokens are {statistics.median(ratios):.2f} times as fast, with grouped-query attention otherwise,"
    return Outcome("direction" if statistics.median(ratios) > 1 else False, found, ratios)


def _pair() -> tuple[GroupedQueryAttention, SlidingWindowAttention]:
    """Return attention to all tokens, and to those of a window."""
    whole = GroupedQueryAttention.Config(dim=_DIM, n_heads=_HEADS, n_kv_heads=_KV_HEADS)
    windowed = SlidingWindowAttention.Config(dim=_DIM, n_heads=_HEADS, n_kv_heads=_KV_HEADS, window=_WINDOW)
    return GroupedQueryAttention(whole), SlidingWindowAttention(windowed)


def _layers(count: int, window: int) -> Sequence[SlidingWindowAttention]:
    config = SlidingWindowAttention.Config(dim=16, n_heads=2, window=window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [SlidingWindowAttention(config).double() for _ in range(count)]


@torch.no_grad()
def _difference(sizes: Sequence[int]) -> float:
    """Return the largest difference between a text read in pieces, from a cache of 8 tokens, and one pass."""
    (attention,) = _layers(1, 8)
    x: Float[Tensor, "1 n d"] = torch.randn(1, sum(sizes), 16, dtype=torch.float64)
    cache = Cache([attention.state()], 1, sum(sizes), dtype=x.dtype, device="cpu")
    pieces = list[Tensor]()
    for piece in x.split(list(sizes), 1):
        step = cache.extend(torch.zeros(piece.shape[:2], dtype=torch.long))
        pieces.append(attention(piece, step.scope, cache=step.layers[0]))
    return (torch.cat(pieces, 1) - attention(x, Scope.over(x))).abs().max().item()


@torch.no_grad()
def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
