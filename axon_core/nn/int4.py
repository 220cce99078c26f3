"""Weights in 4 bits with a scale for each 32 of them: a quarter of the memory of bfloat16."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from axon_core.nn.levels import LevelLinear
from axon_core.nn.linear import TiedLinear
from axon_core.nn.quantization import Quantization

__all__ = ["Int4", "Int4Linear", "to_int4"]

_BLOCK = 32
_STEPS = (8.0, 7.5, 8.5)  # how many steps the largest number of a block is tried to be away from 0
_AT_ONCE = 1 << 18  # numbers of a weight that are rounded at once


def to_int4(weight: Float[Tensor, "*any"]) -> tuple[UInt8[Tensor, " n2"], Float[Tensor, " blocks"]]:
    """Return the codes of whole numbers q in −8 … 7 and a bfloat16 scale s for each 32 weights, so that w ≈ s q.

    The codes q + 8 lie two to a byte, the first in the high half. Of the scales that make the largest number of a block
    −8, −7.5 or −8.5 steps, the one with the least squared error is taken: on normal numbers the error is 4 % less than
    with −8 alone, and 15 % less than with −7 … 7.
    """
    flat = weight.detach().flatten()
    blocks = -(-len(flat) // _BLOCK)
    codes = flat.new_empty(-(-len(flat) // 2), dtype=torch.uint8)
    scales = flat.new_empty(blocks, dtype=torch.bfloat16)
    if flat.is_meta:
        return codes, scales
    for first in range(0, len(flat), _AT_ONCE):
        part = flat[first : first + _AT_ONCE].float()
        padded = nn.functional.pad(part, (0, -len(part) % _BLOCK)).view(-1, _BLOCK)
        q, s = _nearest(padded)
        pairs = (q + 8).to(torch.uint8).view(-1, 2)
        codes[first // 2 : (first + len(part) + 1) // 2] = (pairs[:, 0] << 4 | pairs[:, 1])[: -(-len(part) // 2)]
        scales[first // _BLOCK : first // _BLOCK + len(s)] = s
    return codes, scales


def _nearest(w: Float[Tensor, "b 32"]) -> tuple[Float[Tensor, "b 32"], Float[Tensor, " b"]]:
    """The whole numbers and scales of blocks."""
    largest = w.gather(1, w.abs().argmax(1, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    chosen, numbers = torch.full_like(largest, torch.nan), torch.zeros_like(w)  # a block that is not finite stays NaN
    for steps in _STEPS:
        s = (largest / -steps).bfloat16().float()
        q = (w / torch.where(s == 0, 1.0, s)).round_().clamp_(-8, 7)
        error = ((w - s * q) / torch.where(largest == 0, 1.0, largest)).square_().sum(1, keepdim=True)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, s, chosen)
        numbers = torch.where(better, q, numbers)
    return numbers, chosen.squeeze(1).bfloat16()


class Int4Linear(LevelLinear):
    """A linear map with a weight of whole numbers in −8 … 7 and a scale for each 32: y = x (s ⊙ q)ᵀ + b."""

    levels: ClassVar[tuple[float, ...]] = tuple(map(float, range(-8, 8)))
    block: ClassVar[int] = _BLOCK
    scale: Tensor

    def take(self, weight: Float[Tensor, "r d"]) -> None:
        """Round a weight to 4 bits."""
        codes, scale = to_int4(weight)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)

    def scales(self) -> Float[Tensor, " blocks"]:
        """Return s."""
        return self.scale


class Int4(Quantization):
    """4 bits and a bfloat16 scale for each 32 weights: 4.5 bits a weight."""

    def quantize(self, original: nn.Linear | TiedLinear) -> Int4Linear:
        """Return the map with its weight in 4 bits."""
        return Int4Linear(original)
