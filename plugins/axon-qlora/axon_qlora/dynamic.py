"""Block-wise dynamic 8-bit numbers (arXiv 2110.02861), and with them QLoRA's double quantisation of scales."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["BLOCK", "dynamic_map", "from_double", "from_dynamic", "to_double", "to_dynamic"]

BLOCK = 256
"""Numbers that share a scale, as in bitsandbytes."""


@cache
def dynamic_map(signed: bool = True) -> Float[Tensor, 256]:
    """Return the 256 numbers of the dynamic data type, ascending from −0.993 or, unsigned, from 0 to 1.

    Those of magnitude 10⁻ᵉ to 10¹⁻ᵉ lie in the middle of equal steps, twice as many for each smaller e = 7 … 1; 0 and 1
    are added. In float32 they are bitsandbytes' numbers bit for bit. Source: 2110.02861, and its code.
    """
    found = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float32)
        middles = 10.0 ** (i - 6) * ((ends[:-1] + ends[1:]) / 2)
        found += middles.tolist()
        found += (-middles).tolist() if signed else []
    return torch.tensor(sorted(found), dtype=torch.float32)


def to_dynamic(
    x: Float[Tensor, "*any"], signed: bool = True, block: int = BLOCK
) -> tuple[UInt8[Tensor, "*any"], Float[Tensor, " blocks"]]:
    """Return the indices in `dynamic_map` nearest to x / a, and a = max|x| of each block of consecutive numbers.

    Source: 2110.02861, block-wise dynamic quantisation.
    """
    flat = x.detach().flatten().float()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    a = padded.abs().amax(1)
    values = dynamic_map(signed).to(x.device)
    scaled = (padded / torch.where(a > 0, a, 1.0).unsqueeze(1)).flatten()[: len(flat)]
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2, out_int32=True)
    return codes.to(torch.uint8).view(x.shape), a


def from_dynamic(
    codes: UInt8[Tensor, "*any"], absmax: Float[Tensor, " blocks"], signed: bool = True, block: int = BLOCK
) -> Float[Tensor, "*any"]:
    """Return the numbers that `to_dynamic` stored, in float32. Source: 2110.02861, block-wise dynamic quantisation."""
    values = dynamic_map(signed).to(codes.device)[codes.flatten().int()]
    padded = torch.nn.functional.pad(values, (0, -len(values) % block)).view(-1, block)
    return (padded * absmax.unsqueeze(1)).flatten()[: len(values)].view(codes.shape)


def to_double(
    absmax: Float[Tensor, " n"],
) -> tuple[UInt8[Tensor, " n"], Float[Tensor, " blocks"], Float[Tensor, ""]]:
    """Return double quantisation of scales: `to_dynamic` of absmax − mean, and the mean. Source: 2305.14314, Section 3.

    A scale takes 8 bits, and 32 more for each 256 of them: with blocks of 64 weights 0.127 bits a weight, not 0.5.
    """
    offset = absmax.mean()
    return *to_dynamic(absmax - offset), offset


def from_double(
    codes: UInt8[Tensor, " n"], nested: Float[Tensor, " blocks"], offset: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Return the scales that `to_double` stored. Source: 2305.14314, Section 3."""
    return from_dynamic(codes, nested) + offset
