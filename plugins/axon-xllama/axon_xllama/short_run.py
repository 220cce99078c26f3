"""A short training of a small X-Llama, by which claims of its parts are checked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from axon_core.text import read_text
from axon_xllama.model import XLlama

__all__ = ["short_run_loss"]

_BATCH, _LR = 16, 3e-3


def short_run_loss(build: Callable[[], XLlama], seed: int, steps: int) -> float:
    """Return the held-out loss of a small model of characters after so many steps, in nats per character.

    It sees windows of the text inside Python, as long as its context and 16 a step, and AdamW's rate falls from 3e-3
    to 0. Runs with equal seeds see the same windows, so that their losses can be paired.

    Args:
        build: returns a new model of at least 128 tokens.
        seed: of the weights and the windows.
        steps: number of updates.
    """
    text = torch.tensor(list(read_text()[:400_000].encode("ascii", "ignore")))
    train, held_out = text[:-40_000], text[-40_000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
        optimizer.zero_grad()
        _loss(model, train, _BATCH, generator).backward()
        optimizer.step()
    with torch.no_grad():
        return _loss(model, held_out, 256, torch.Generator().manual_seed(1)).item()


def _loss(model: XLlama, text: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    n = model.config.context
    starts = torch.randint(len(text) - n, (batch, 1), generator=generator)
    passages = text[starts + torch.arange(n + 1)]
    return cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())
