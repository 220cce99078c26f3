"""Checks of the paper's claims; `axon reproduce tsm` runs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_xllama import XLlama

_CONTEXT, _BATCH, _STEPS, _SEEDS = 32, 16, 250, (0, 1)
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
    losses = {kind: [_trained(seed, kind) for seed in _SEEDS] for kind in _KINDS}
    plain, shifted = (sum(found) / len(found) for found in losses.values())
    gains = [a - b for a, b in zip(losses["none"], losses["shift"], strict=True)]
    found = f"loss {plain:.3f} without the shift, {shifted:.3f} with it: a gain of"
    return Outcome("direction" if min(gains) > 0 else False, found, gains)


def _trained(seed: int, kind: str) -> float:
    """Return the held-out loss of a small model after some steps, in nats per character."""
    text = torch.tensor(list(read_text()[:400_000].encode("ascii", "ignore")))
    train, held_out = text[:-40_000], text[-40_000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XLlama.build(**_SIZES, token_mixer=kind)
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
