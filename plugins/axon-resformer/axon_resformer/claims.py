"""Checks of the paper's claims; `axon reproduce resformer` runs them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_xllama import XLlama, short_run_loss

_CONTEXT, _STEPS, _SEEDS = 32, 400, (0, 1, 2)
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
    builds = {kind: partial(XLlama.build, **_SIZES, attention=kind) for kind in _KINDS}
    losses = {kind: [short_run_loss(build, seed, _STEPS) for seed in _SEEDS] for kind, build in builds.items()}
    plain, mixed = (sum(found) / len(found) for found in losses.values())
    gains = [a - b for a, b in zip(losses["GQA"], losses["VR"], strict=True)]
    found = f"loss {plain:.3f} without, {mixed:.3f} with value residuals: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains)
