"""Checks of the paper's claims; `axon reproduce overtokenized` runs them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from axon_core.papers import Outcome
from axon_xllama import XLlama, short_run_loss

_CONTEXT, _STEPS, _SEEDS = 32, 250, (0, 1)
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
    losses = {rows: [short_run_loss(partial(_model, rows), seed, _STEPS) for seed in _SEEDS] for rows in (None, *_ROWS)}
    means = [sum(found) / len(found) for found in losses.values()]
    shown = ", ".join(f"{mean:.3f} with {rows or 'no'} rows" for rows, mean in zip(losses, means, strict=True))
    gains = [a - b for a, b in zip(losses[None], losses[_ROWS[-1]], strict=True)]
    falls = all(a > b for a, b in pairwise(means))
    return Outcome("direction" if falls and min(gains) > 0 else False, f"loss {shown}: a gain of", gains)


def _model(rows: int | None) -> XLlama:
    embedding = "token" if rows is None else {"type": "n_gram", "rows": rows}
    return XLlama.build(**_SIZES, embedding=embedding)
