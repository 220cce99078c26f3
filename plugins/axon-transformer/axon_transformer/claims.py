"""The paper's claims, checked."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from axon_core.interfaces import Scope
from axon_core.papers import Outcome
from axon_transformer.attention import MultiHeadAttention
from axon_transformer.positions import sinusoids

_KEY_SIZES = (4, 16, 64, 256)
_LENGTHS = (4, 16, 64, 256)


def dot_product_variance() -> Outcome:
    """Estimate mean and variance of q·k from 100,000 pairs of standard normal vectors."""
    generator = torch.Generator().manual_seed(0)
    means: list[float] = []
    ratios: list[float] = []
    holds = True
    for d_k in _KEY_SIZES:
        q, k = torch.randn(2, 100_000, d_k, generator=generator, dtype=torch.float32).unbind(0)
        products = (q * k).sum(-1)
        mean, ratio = products.mean().item(), products.var().item() / d_k
        # six standard errors: √(d_k / N) of the mean, and √((2 + 6 / d_k) / N) of the variance relative to d_k
        holds &= abs(mean) < 6 * (d_k / 1e5) ** 0.5 and abs(ratio - 1) < 6 * ((2 + 6 / d_k) / 1e5) ** 0.5
        means.append(abs(mean))
        ratios.append(ratio)
    sizes = f"for d_k {_KEY_SIZES[0]} to {_KEY_SIZES[-1]}"
    return Outcome(
        holds, f"mean within {max(means):.3f} of 0, variance / d_k {min(ratios):.3f} to {max(ratios):.3f}, {sizes}"
    )


def saturation() -> Outcome:
    """Compare the size of softmax's gradient over 64 random keys, with and without the scale 1/√d_k."""
    generator = torch.Generator().manual_seed(0)
    sizes: dict[bool, list[float]] = {False: [], True: []}
    for d_k in _KEY_SIZES:
        q, k = (
            torch.randn(512, 1, d_k, generator=generator, dtype=torch.float32),
            torch.randn(512, 64, d_k, generator=generator, dtype=torch.float32),
        )
        scores = (q * k).sum(-1)
        for scaled in sizes:
            p = (scores / d_k**0.5 if scaled else scores).softmax(-1)
            jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
            sizes[scaled].append(jacobian.norm(dim=(-2, -1)).median().item())
    plain, scaled = sizes[False], sizes[True]
    shrinks = plain[-1] < plain[0] / 10 and scaled[-1] > scaled[0] / 2
    text = f"median gradient from d_k {_KEY_SIZES[0]} to {_KEY_SIZES[-1]}: unscaled {plain[0]:.2g} to {plain[-1]:.2g}"
    return Outcome(shrinks, f"{text}, scaled {scaled[0]:.2g} to {scaled[-1]:.2g}")


def cost_of_heads() -> Outcome:
    """Count parameters and operations of one attention, with 1 head of 512 features and with 8 heads of 64."""
    cost = {}
    for n_heads in (1, 8):
        attention = MultiHeadAttention(MultiHeadAttention.Config(dim=512, n_heads=n_heads)).to("meta")
        x = torch.empty(1, 128, 512, device="meta")
        with FlopCounterMode(display=False) as counter:
            attention(x, Scope.over(x))
        cost[n_heads] = (sum(p.numel() for p in attention.parameters()), counter.get_total_flops())
    (p1, f1), (p8, f8) = cost[1], cost[8]
    found = f"1 and 8 heads: {p1:,} and {p8:,} parameters, {f1:,} and {f8:,} operations over 128 tokens"
    return Outcome(cost[1] == cost[8], found)


def path_length() -> Outcome:
    """Count the sequential operations from the first token to the last result, for several lengths."""
    attention = MultiHeadAttention(MultiHeadAttention.Config(dim=8, n_heads=2))
    recurrent = nn.RNNCell(8, 8)
    paths: dict[str, list[int]] = {"self-attention": [], "recurrence": []}
    for n in _LENGTHS:
        tokens = [torch.ones(1, 8, requires_grad=True) for _ in range(n)]
        x = torch.stack(tokens, 1)
        paths["self-attention"].append(_depth(attention(x, Scope.over(x))[:, -1], tokens[0]))
        state = torch.zeros(1, 8)
        for token in tokens:
            state = recurrent(token, state)
        paths["recurrence"].append(_depth(state, tokens[0]))
    constant, growing = paths.values()
    # linear: each further token adds the same number of operations
    linear = len({(b - a) / (m - n) for (n, m), (a, b) in zip(pairwise(_LENGTHS), pairwise(growing), strict=True)}) == 1
    listed = "; ".join(f"{name} {', '.join(map(str, counts))}" for name, counts in paths.items())
    return Outcome(
        len(set(constant)) == 1 and linear and growing[-1] > growing[0],
        f"operations in a row from the first of {', '.join(map(str, _LENGTHS))} tokens to the last result: {listed}",
    )


def _depth(result: Tensor, leaf: Tensor) -> int:
    """Return the largest number of operations on a path from `leaf` to `result` in autograd's graph."""
    depths: dict[object, float] = {None: -torch.inf}
    stack = [result.grad_fn]
    while stack:
        node = stack[-1]
        inputs = [] if node is None else [before for before, _ in node.next_functions]
        if waiting := [before for before in inputs if before not in depths]:
            stack += waiting
            continue
        if node not in depths:
            own = 0 if getattr(node, "variable", None) is leaf else -torch.inf
            depths[node] = max([own, *(1 + depths[before] for before in inputs)])
        stack.pop()
    return int(depths[result.grad_fn])


def linear_shift() -> Outcome:
    """Compare PE(p + s) with M_s PE(p), where M_s rotates each pair of features by s and does not depend on p."""
    dim, positions, worst = 64, torch.arange(1000), 0.0
    encoded = sinusoids(positions, dim)
    for shift in (1, 7, 100):
        sin, cos = sinusoids(torch.tensor(shift), dim).double().view(-1, 2).unbind(-1)
        turn = torch.stack((torch.stack((cos, sin), -1), torch.stack((-sin, cos), -1)), -2)
        moved = torch.block_diag(*turn)
        shifted = sinusoids(positions + shift, dim)
        worst = max(worst, (encoded.double() @ moved.T - shifted).abs().max().item())
    return Outcome(worst < 1e-3, f"largest difference {worst:.1e} over 1,000 positions in float32")
