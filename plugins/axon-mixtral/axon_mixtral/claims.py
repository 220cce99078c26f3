"""Checks of the paper's claims; `axon reproduce mixtral` runs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from axon_core.checkpoint import weightless
from axon_core.interfaces import Scope
from axon_core.nn import auxiliary_losses
from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_mixtral.experts import MixtureOfExperts
from axon_xllama import XLlama

_CONTEXT, _BATCH, _STEPS, _SEEDS = 32, 16, 250, (0, 1)


@torch.no_grad()
def sparse() -> Outcome:
    """Compare with the sum over all experts, those that were not chosen with weight 0."""
    torch.manual_seed(0)
    config = MixtureOfExperts.Config(dim=16, hidden_dim=32)
    moe = MixtureOfExperts(config).double()
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    scores = moe.router(x)
    least = scores.topk(2, -1).values[..., -1:]
    weights = scores.masked_fill(scores < least, float("-inf")).softmax(-1)
    every = sum((weights[..., i, None] * expert(x, Scope.over(x)) for i, expert in enumerate(moe.experts)), 0 * x)
    difference = (moe(x, Scope.over(x)) - every).abs().max().item()
    unused = int((weights == 0).sum(-1).unique())
    return Outcome(difference < 1e-12, f"largest difference {difference:.0e}, with {unused} of 8 experts left out")


def active() -> Outcome:
    """Count the parameters of a model of the paper's sizes (Table 1)."""
    with weightless():
        model = XLlama.build(
            vocab_size=32000,
            context=32768,
            dim=4096,
            n_layers=32,
            n_heads=32,
            hidden_dim=14336,
            attention={"type": "GQA", "n_kv_heads": 8},
            feed_forward="moe",
        )
    one = sum(parameter.numel() for parameter in model.get_submodule("blocks.0.feed_forward.experts.0").parameters())
    total = model.n_parameters
    used = total - 32 * 6 * one
    fits = round(total / 1e9) == 47 and round(used / 1e9) == 13
    return Outcome(fits, f"{total / 1e9:.1f}B parameters, of which {used / 1e9:.1f}B for a token")


def better_per_compute() -> Outcome:
    """Train small models of characters on the same batches: 8 experts of which 2 compute, and as much of one kind."""
    gains, losses = list[float](), dict[str, list[float]]({"dense": [], "moe": []})
    for seed in _SEEDS:
        losses["moe"].append(_trained(seed, "moe", 32))
        losses["dense"].append(_trained(seed, "swiglu", 64))  # two experts' features
        gains.append(losses["dense"][-1] - losses["moe"][-1])
    dense, moe = (sum(found) / len(found) for found in losses.values())
    found = f"loss {dense:.3f} with 64 hidden features, {moe:.3f} with 8 experts of 32, of which 2 are used: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains, _SEEDS)


def _trained(seed: int, feed_forward: str, hidden_dim: int) -> float:
    """Return the held-out loss of a small model after some steps, in nats per character."""
    text = torch.tensor(list(read_text()[:400_000].encode("ascii", "ignore")))
    train, held_out = text[:-40_000], text[-40_000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 128, "context": _CONTEXT, "dim": 48, "n_layers": 2, "n_heads": 4}
        model = XLlama.build(**sizes, hidden_dim=hidden_dim, feed_forward=feed_forward)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / _STEPS)
        with auxiliary_losses() as others:
            loss = _loss(model, train, _BATCH, generator)
        optimizer.zero_grad()
        sum((total / _BATCH for total in others.values()), loss).backward()
        optimizer.step()
    with torch.no_grad():
        return _loss(model, held_out, 256, torch.Generator().manual_seed(1)).item()


def _loss(model: XLlama, text: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - _CONTEXT, (batch, 1), generator=generator)
    passages = text[starts + torch.arange(_CONTEXT + 1)]
    return cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())
