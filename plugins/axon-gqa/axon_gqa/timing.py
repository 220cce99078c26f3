"""How long attention takes to decode a token when its cache is already long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from axon_core.interfaces import Cache
from axon_gqa.attention import GroupedQueryAttention

ROWS, TOKENS = 8, 4096
DIM, HEADS = 512, 8
ROUNDS = 21


@torch.inference_mode()
def step_seconds(groups: Sequence[int]) -> dict[int, float]:
    """Return, for each number of key/value heads, the median time of a decoding step of one layer of attention.

    Each step attends from one new token in each of `ROWS` rows to `TOKENS` kept ones. The layers take turns, so that
    any other load on the machine affects all of them alike.
    """
    with torch.random.fork_rng(devices=[]):
        layers = {n_kv_heads: _decoding(n_kv_heads) for n_kv_heads in groups}
    seconds: dict[int, list[float]] = {n_kv_heads: [] for n_kv_heads in groups}
    for _ in range(ROUNDS):
        for n_kv_heads, step in layers.items():
            begun = time.perf_counter()
            step()
            seconds[n_kv_heads].append(time.perf_counter() - begun)
    return {n_kv_heads: statistics.median(times) for n_kv_heads, times in seconds.items()}


def _decoding(n_kv_heads: int) -> Callable[[], object]:
    """Return a function that decodes one more token of every row, with random weights after random keys and values."""
    config = GroupedQueryAttention.Config(dim=DIM, n_heads=HEADS, n_kv_heads=n_kv_heads)
    attention = GroupedQueryAttention(config)
    states = attention.state()
    cache = Cache([states], ROWS, TOKENS + ROUNDS, dtype=torch.float32, device="cpu")
    (layer,) = cache.extend(torch.zeros(ROWS, TOKENS, dtype=torch.long)).layers
    assert layer is not None
    k, v = (torch.randn(ROWS, TOKENS, *states[name].shape, dtype=torch.float32) for name in "kv")
    layer.append(k=k, v=v)
    x, token = torch.randn(ROWS, 1, DIM, dtype=torch.float32), torch.zeros(ROWS, 1, dtype=torch.long)

    def step() -> object:
        _, scope, (layer,) = cache.extend(token)
        return attention(x, scope, cache=layer)

    return step
