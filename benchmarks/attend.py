"""Measure `nn.attention` beside a plain call of torch's kernel: short rows in training, prompts, single queries.

    python benchmarks/attend.py [--rounds 40]

Figures are the fastest of many rounds, in milliseconds of CPU time on one thread, so that other processes disturb them
least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend

Attend = Callable[[Tensor, Tensor, Tensor, Scope], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
    """Torch's kernel with the inputs as they are."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True).transpose(1, 2)


def training(attention: Attend, b: int, n: int, h: int, k: int, d: int, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward over `b` rows of `n` tokens."""
    inputs = [torch.randn(b, n, heads, d, dtype=dtype, requires_grad=True) for heads in (h, k, k)]
    gradient, scope = torch.randn(b, n, h, d, dtype=dtype), Scope.over(inputs[0][..., 0, 0])
    return lambda: torch.autograd.grad(attention(*inputs, scope), inputs, gradient)


def prefill(attention: Attend, b: int, n: int, h: int, k: int, d: int, dtype: torch.dtype) -> Callable[[], object]:
    """Forward over `b` rows of `n` tokens, for inference."""
    inputs = [torch.randn(b, n, heads, d, dtype=dtype) for heads in (h, k, k)]
    scope = Scope.over(inputs[0][..., 0, 0])
    return torch.no_grad()(lambda: attention(*inputs, scope))


def decoding(attention: Attend, b: int, m: int, h: int, k: int, d: int, dtype: torch.dtype) -> Callable[[], object]:
    """One query over `m` keys, the filled part of a longer cache."""
    q, keys, values = (torch.randn(b, 2 * m, heads, d, dtype=dtype)[:, :m] for heads in (h, k, k))
    scope = Scope(torch.full((1, 1), m - 1), torch.arange(m).unsqueeze(0), causal=True)
    return torch.no_grad()(lambda: attention(q[:, :1], keys, values, scope))


def fastest(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each function, taking turns."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds + 1):
        for i, function in enumerate(functions):
            start = time.thread_time()
            function()
            best[i] = min(best[i], (time.thread_time() - start) * 1e3)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = [
        ("training b 12, n 64, h 4, k 4, d 32", training, (12, 64, 4, 4, 32)),
        ("training b 12, n 64, h 4, k 2, d 32", training, (12, 64, 4, 2, 32)),
        ("training b 1, n 1024, h 12, k 4, d 64", training, (1, 1024, 12, 4, 64)),
        ("prefill b 1, n 256, h 12, k 4, d 64", prefill, (1, 256, 12, 4, 64)),
        ("prefill b 1, n 512, h 12, k 4, d 64", prefill, (1, 512, 12, 4, 64)),
        ("prefill b 1, n 512, h 32, k 4, d 64", prefill, (1, 512, 32, 4, 64)),
        ("decoding b 1, m 512, h 12, k 4, d 64", decoding, (1, 512, 12, 4, 64)),
        ("decoding b 8, m 512, h 12, k 4, d 64", decoding, (8, 512, 12, 4, 64)),
        ("decoding b 1, m 2048, h 32, k 4, d 64", decoding, (1, 2048, 32, 4, 64)),
    ]
    print(f"{'ms of CPU time':40}{'plain':>10}{'attend':>10}")
    for name, case, sizes in cases:
        for dtype in (torch.float32, torch.bfloat16):
            ours, torchs = fastest([case(attend, *sizes, dtype), case(plain, *sizes, dtype)], rounds)
            print(f"{name:40}{torchs:10.3f}{ours:10.3f}  {str(dtype).removeprefix('torch.')}")


if __name__ == "__main__":
    main()
