"""Checks of the paper's claims; `axon reproduce denseformer` runs them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from axon_core.checkpoint import weightless
from axon_core.papers import Outcome
from axon_denseformer.streams import DepthWeightedAverage
from axon_xllama import XLlama, short_run_loss

_CONTEXT, _STEPS, _SEEDS = 32, 400, (0, 1, 2)


@torch.no_grad()
def average() -> Outcome:
    """Compare with the product of a lower triangular matrix of weights and all outputs, layer by layer."""
    torch.manual_seed(0)
    stream = DepthWeightedAverage(DepthWeightedAverage.Config(dim=5, n_layers=6)).double()
    for weights in stream.weights:
        weights.normal_()
    maps = torch.randn(6, 5, 5, dtype=torch.float64)  # each stands for a layer
    start = torch.randn(2, 3, 5, dtype=torch.float64)
    past: list[Tensor] = []
    x, outputs, largest = stream(start, past), [start], 0.0
    for layer, weights in enumerate(stream.weights):
        read, x = x, stream(x @ maps[layer], past)
        outputs.append(read @ maps[layer])
        expected = torch.einsum("j,jbnd->bnd", weights, torch.stack(outputs))
        largest = max(largest, (x - expected).abs().max().item())
    return Outcome(largest < 1e-12, f"largest difference {largest:.0e} over 6 layers")


def few_parameters() -> Outcome:
    """Count the parameters of models of 100B, with and without the weights."""
    sizes = {"vocab_size": 32000, "context": 2048, "dim": 10240, "n_layers": 80, "n_heads": 80, "hidden_dim": 27648}
    with weightless():
        plain, dense = (
            XLlama.build(**sizes, attention="MHA", residual=residual).n_parameters for residual in ("plain", "dwa")
        )
    added = dense - plain
    return Outcome(1000 <= added < 10_000 and round(plain / 1e10) == 10, f"{added:,} of {dense / 1e9:.0f}B parameters")


def better() -> Outcome:
    """Train small, deep models of characters on the same batches, with and without the averages."""
    sizes = {"vocab_size": 128, "context": _CONTEXT, "dim": 32, "n_layers": 6, "n_heads": 4}
    builds = {kind: partial(XLlama.build, **sizes, residual=kind) for kind in ("plain", "dwa")}
    losses = {kind: [short_run_loss(build, seed, _STEPS) for seed in _SEEDS] for kind, build in builds.items()}
    plain, dense = (sum(found) / len(found) for found in losses.values())
    gains = [a - b for a, b in zip(losses["plain"], losses["dwa"], strict=True)]
    found = f"loss {plain:.3f} with a plain residual stream, {dense:.3f} with weighted averages: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains)
