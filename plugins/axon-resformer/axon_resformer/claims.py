"""Checks of the paper's claims; `axon reproduce resformer` runs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_xllama import XLlama

_CONTEXT, _BATCH, _STEPS, _SEEDS = 32, 16, 400, (0, 1, 2)
_SIZES = {"vocab_size": 128, "context": _CONTEXT, "dim": 32, "n_layers": 6, "n_heads": 4}
_KINDS = ("GQA", "VR")


@torch.no_grad()
def value_residual() -> Outcome:
    """With λ = 1 all layers attend to the first layer's values: other matrices for later values change nothing."""
    torch.manual_seed(0)
    model = XLlama.build(**_SIZES, attention="VR").double().eval()
    tokens = torch.randint(128, (2, _CONTEXT))
    changes = list[float]()
    for weight in (1.0, 0.5):
        before = _scores(model, tokens, weight)
        for block in list(model.blocks)[1:]:
            *_, values = block.get_parameter("attention.qkv.projection.weight").split([32, 16, 16])
            values.normal_()
        changes.append((_scores(model, tokens, weight) - before).abs().max().item())
    whole, half = changes
    return Outcome(whole < 1e-12 and half > 0.01, f"largest change {whole:.0e} with λ = 1, {half:.2f} with λ = ½")


def _scores(model: XLlama, tokens: Tensor, weight: float) -> Tensor:
    for block in list(model.blocks)[1:]:
        block.get_parameter("attention.first_weight").fill_(weight)
    return model(tokens)


def same_cost() -> Outcome:
    """Count the bytes of the decoding state, the parameters, and the FLOPs of products in a pass."""
    found = list[tuple[int, int, int]]()
    for kind in _KINDS:
        model = XLlama.build(**_SIZES, attention=kind)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, _CONTEXT, dtype=torch.long))
        found.append((model.new_cache(1, _CONTEXT).nbytes, counter.get_total_flops(), model.n_parameters))
    plain, mixed = found
    added = mixed[2] - plain[2]
    same = plain[:2] == mixed[:2] and added == _SIZES["n_layers"] - 1
    return Outcome(same, f"{mixed[0]:,} bytes and {mixed[1]:,} FLOPs with and without; {added} parameters added")


def better() -> Outcome:
    """Train small, deep models of characters on the same batches, with and without value residuals."""
    losses = {kind: [_trained(seed, kind) for seed in _SEEDS] for kind in _KINDS}
    plain, mixed = (sum(found) / len(found) for found in losses.values())
    gains = [a - b for a, b in zip(losses["GQA"], losses["VR"], strict=True)]
    found = f"loss {plain:.3f} without, {mixed:.3f} with value residuals: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains)


def _trained(seed: int, kind: str) -> float:
    """Return the held-out loss of a small model after some steps, in nats per character."""
    text = torch.tensor(list(read_text()[:400_000].encode("ascii", "ignore")))
    train, held_out = text[:-40_000], text[-40_000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XLlama.build(**_SIZES, attention=kind)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / _STEPS)
        optimizer.zero_grad()
        _loss(model, train, _BATCH, generator).backward()
        optimizer.step()
    with torch.no_grad():
        return _loss(model, held_out, 256, torch.Generator().manual_seed(1)).item()


def _loss(model: XLlama, text: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - _CONTEXT, (batch, 1), generator=generator)
    passages = text[starts + torch.arange(_CONTEXT + 1)]
    return cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())
