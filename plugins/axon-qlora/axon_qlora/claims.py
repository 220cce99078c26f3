"""Checks of the paper's claims; `axon reproduce qlora` runs them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.papers import Outcome
from axon_qlora.linear import NF4Linear
from axon_qlora.nf4 import LEVELS, from_nf4, to_nf4

_FP4 = (0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
_OFFSET = 0.9677083
_BLOCK = 64


def quantiles() -> Outcome:
    """Compute the levels from the quantiles of a normal distribution in float64."""
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    above = normal.icdf(torch.linspace(_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    computed = torch.cat((above, below, torch.zeros(1).double())).sort().values / above.max()
    difference = (computed - torch.tensor(LEVELS).double()).abs().max().item()
    found = (
        f"largest difference {difference:.1e} of the 16 levels from quantiles in float64; {LEVELS[7]} is one of them"
    )
    return Outcome(difference < 5e-7 and LEVELS[7] == 0, found)


def double_quantisation() -> Outcome:
    """Count the bits of a 4,096 × 4,096 weight, with and without double quantisation."""
    original = torch.nn.Linear(4096, 4096, bias=False)
    plain, double = (_bits(NF4Linear(original, double=double)) for double in (False, True))
    found = f"{plain:.4f} bits a weight, {double:.4f} with double quantisation: {plain - double:.4f} fewer"
    return Outcome(round(plain - double, 3) == 0.373, found)


def _bits(layer: NF4Linear) -> float:
    """The bits a weight takes; the table of levels belongs to the code."""
    stored = [buffer for name, buffer in layer.named_buffers() if name != "table"]
    return 8 * sum(buffer.nbytes for buffer in stored) / (layer.outputs * layer.inputs)


def normal_weights() -> Outcome:
    """Compare the root mean square errors of three data types in blocks of 64 on normal numbers."""
    gains: list[float] = []
    shown: list[str] = []
    for seed in (0, 1):
        w = torch.from_numpy(np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32))
        errors = {"NF4": _rms(w - from_nf4(*to_nf4(w), tuple(w.shape)))}
        grids = {"FP4": [sign * level for level in _FP4 for sign in (-1, 1)], "int4": [q / 7 for q in range(-7, 8)]}
        errors |= {name: _rms(w - _nearest(w, grid)) for name, grid in grids.items()}
        gains.append(min(errors["FP4"], errors["int4"]) / errors["NF4"] - 1)
        shown.append(", ".join(f"{name} {error:.5f}" for name, error in errors.items()))
    return Outcome(
        "direction" if min(gains) > 0.1 else False,
        f"root mean square errors {shown[0]}; the next best has this share more than NF4",
        values=gains,
        seeds=(0, 1),
    )


def _nearest(w: Float[Tensor, " n"], grid: list[float]) -> Float[Tensor, " n"]:
    """The numbers of a grid, times each block's largest magnitude, nearest to w."""
    levels = torch.tensor(sorted(set(grid)))
    blocks = w.view(-1, _BLOCK)
    a = blocks.abs().amax(1, keepdim=True)
    return (levels[torch.bucketize(blocks / a, (levels[1:] + levels[:-1]) / 2)] * a).flatten()


def _rms(x: Float[Tensor, " n"]) -> float:
    return x.double().square().mean().sqrt().item()
