"""Checks of the paper's claims; `axon reproduce tsm` runs them."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_xllama import XLlama, short_run_loss

_CONTEXT, _STEPS, _SEEDS = 32, 250, (0, 1)
_SIZES = {"vocab_size": 128, "context": _CONTEXT, "dim": 48, "n_layers": 2, "n_heads": 4}
_KINDS = ("none", "shift")


def zero_cost() -> Outcome:
    """Count the parameters of a model and the FLOPs of a pass, with and without the shift."""
    found = list[tuple[int, int]]()
    for kind in _KINDS:
        model = XLlama.build(**_SIZES, token_mixer=kind)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, _CONTEXT, dtype=torch.long))
        found.append((model.n_parameters, counter.get_total_flops()))
    (parameters, flops), more = found
    same = (parameters, flops) == more
    return Outcome(
        same, f"{more[0] - parameters} parameters and {more[1] - flops} FLOPs added to {parameters:,} and {flops:,}"
    )


@torch.no_grad()
def online() -> Outcome:
    """Decode token by token, and compare with one pass."""
    torch.manual_seed(0)
    model = XLlama.build(**_SIZES, token_mixer={"type": "shift", "shares": [0.25, 0.25]}).double().eval()
    tokens = torch.randint(128, (2, _CONTEXT))
    cache = model.new_cache(2, _CONTEXT)
    steps = torch.cat([model(token, cache=cache) for token in tokens.split(1, 1)], 1)
    difference = (steps - model(tokens)).abs().max().item()
    return Outcome(difference < 1e-12, f"largest difference {difference:.0e} over {_CONTEXT} steps")


def better() -> Outcome:
    """Train small models of characters on the same batches, with and without the shift."""
    builds = {kind: partial(XLlama.build, **_SIZES, token_mixer=kind) for kind in _KINDS}
    losses = {kind: [short_run_loss(build, seed, _STEPS) for seed in _SEEDS] for kind, build in builds.items()}
    plain, shifted = (sum(found) / len(found) for found in losses.values())
    gains = [a - b for a, b in zip(losses["none"], losses["shift"], strict=True)]
    found = f"loss {plain:.3f} without the shift, {shifted:.3f} with it: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains)
