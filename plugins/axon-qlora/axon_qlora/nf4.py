"""NF4, the 4-bit data type of QLoRA (arXiv 2305.14314), as functions of tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from axon_core.nn import widen_levels

__all__ = ["LEVELS", "from_nf4", "to_nf4"]

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 numbers of NF4: quantiles of a normal distribution, 8 above 0 and 7 below it, over the largest of them.

They are Φ⁻¹ of `linspace(o, ½, 9)` and of `linspace(o, ½, 8)` without their ends, o = 0.9677083, in float32 as
bitsandbytes computes them; the formula in float64 is off by up to 2e-7.
"""

_AT_ONCE = 1 << 20  # numbers that are rounded at once; a multiple of all blocks


def to_nf4(weight: Float[Tensor, "*any"], block: int = 64) -> tuple[UInt8[Tensor, " n2"], Float[Tensor, " blocks"]]:
    """Return the codes of the levels nearest to w / a, and a = max|w| of each block of consecutive numbers, in float32.

    The codes lie two to a byte, the first in the high half, as in bitsandbytes; of two levels as near as each other,
    the lower is taken. On the meta device nothing is computed. Source: 2305.14314, Section 3.
    """
    flat = weight.detach().flatten()
    codes = flat.new_empty(-(-len(flat) // 2), dtype=torch.uint8)
    absmax = flat.new_empty(-(-len(flat) // block), dtype=torch.float32)
    if flat.is_meta:
        return codes, absmax
    levels = torch.tensor(LEVELS, device=flat.device)
    bounds = (levels[1:] + levels[:-1]) / 2
    step = _AT_ONCE // block * block
    for first in range(0, len(flat), step):
        part = flat[first : first + step].float()
        padded = torch.nn.functional.pad(part, (0, -len(part) % block)).view(-1, block)
        a = padded.abs().amax(1)
        absmax[first // block : first // block + len(a)] = a
        scaled = (padded * (1 / a.clamp(min=1e-38)).unsqueeze(1)).flatten()[: len(part)]
        if len(part) % 2:
            scaled = torch.cat((scaled, scaled.new_zeros(1)))
        found = torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8)
        codes[first // 2 : (first + len(scaled)) // 2] = found[::2] << 4 | found[1::2]
    return codes, absmax


def from_nf4(
    codes: UInt8[Tensor, " n2"],
    absmax: Float[Tensor, " blocks"],
    shape: tuple[int, ...],
    block: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*any"]:
    """Return the numbers that `to_nf4` stored: level · a, rounded to `dtype`. Source: 2305.14314, Section 3."""
    levels = torch.tensor(LEVELS, device=codes.device)
    count = torch.Size(shape).numel()
    return widen_levels(codes, absmax, levels, block, 0, count, dtype).view(shape)
