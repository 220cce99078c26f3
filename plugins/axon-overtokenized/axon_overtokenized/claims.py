"""Checks of the paper's claims; `axon reproduce overtokenized` runs them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_xllama import XLlama

_CONTEXT, _BATCH, _STEPS, _SEEDS = 32, 16, 250, (0, 1)
_ROWS = (512, 2048, 8192)
_SIZES = {"vocab_size": 128, "context": _CONTEXT, "dim": 48, "n_layers": 2, "n_heads": 4}


def decoupled() -> Outcome:
    """Compare the tensors of models with and without n-grams: all but the new tables have the same shape."""
    plain, more = ({name: tuple(p.shape) for name, p in _model(rows).named_parameters()} for rows in (None, 8192))
    added = {name: shape for name, shape in more.items() if name not in plain}
    same = all(more.get(name) == shape for name, shape in plain.items())
    fits = same and set(added.values()) == {(8192, 48)}
    shapes = ", ".join(map(str, added.values()))
    return Outcome(fits, f"added: {shapes}; scores of {more['head.weight'][0]} tokens, as before")


def no_additional_cost() -> Outcome:
    """Count the multiplications of a pass with tables of different sizes."""
    tokens = torch.zeros(1, _CONTEXT, dtype=torch.long)
    counted = list[int]()
    for rows in (None, *_ROWS):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _model(rows)(tokens)
        counted.append(counter.get_total_flops())
    shown = ", ".join(f"{count:,}" for count in counted)
    return Outcome(len(set(counted)) == 1, f"FLOPs without a table and with {_ROWS} rows: {shown}")


def larger_is_better() -> Outcome:
    """Train small models of characters on the same batches, with tables of pairs of different sizes."""
    losses = {rows: [_trained(seed, rows) for seed in _SEEDS] for rows in (None, *_ROWS)}
    means = [sum(found) / len(found) for found in losses.values()]
    shown = ", ".join(f"{mean:.3f} with {rows or 'no'} rows" for rows, mean in zip(losses, means, strict=True))
    gains = [a - b for a, b in zip(losses[None], losses[_ROWS[-1]], strict=True)]
    falls = all(a > b for a, b in pairwise(means))
    return Outcome("direction" if falls and min(gains) > 0 else False, f"loss {shown}: a gain of", gains)


def _model(rows: int | None) -> XLlama:
    embedding = "token" if rows is None else {"type": "n_gram", "rows": rows}
    return XLlama.build(**_SIZES, embedding=embedding)


def _trained(seed: int, rows: int | None) -> float:
    """Return the held-out loss of a small model after some steps, in nats per character."""
    text = torch.tensor(list(read_text()[:400_000].encode("ascii", "ignore")))
    train, held_out = text[:-40_000], text[-40_000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(rows)
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
