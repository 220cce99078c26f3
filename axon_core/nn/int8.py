"""Weights in 8 bits: half the memory of bfloat16, and decoding that reads half as much."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axon_core.nn.linear import TiedLinear, affine
from axon_core.nn.quantization import Quantization, QuantizedLinear

__all__ = ["Int8", "Int8Linear", "int8_product", "to_int8"]

_AT_ONCE = 1 << 18  # numbers of a weight that are rounded at once
_WIDENED = 1 << 20  # numbers of a weight that are widened at once: what a processor's cache holds
_ROWS = 16  # in bfloat16: the most for which a product is faster on the 8 bits themselves than on widened ones


def to_int8(weight: Float[Tensor, "r d"]) -> tuple[Int[Tensor, "r d"], Float[Tensor, " r"]]:
    """Return whole numbers q in −127 … 127 and one scale s ≥ max|w| / 127 a row, so that |w − s q| ≤ s / 2.

    s is the next number that bfloat16 holds: multiplying by it in bfloat16 rounds nothing but the product.
    """
    weight = weight.detach()
    q = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = weight.new_empty(weight.shape[0], dtype=torch.float32)
    if weight.is_meta:
        return q, scale
    n = max(1, _AT_ONCE // max(1, weight.shape[1]))
    buffer = weight.new_empty(min(n, weight.shape[0]), weight.shape[1], dtype=torch.float32)
    for first in range(0, weight.shape[0], n):  # in little memory, all of it reused
        part = weight[first : first + n]
        wide = buffer[: len(part)].copy_(part)
        least = torch.maximum(wide.amax(-1), -wide.amin(-1)) / 127
        near = least.bfloat16()
        scale[first : first + n] = s = torch.where(near < least, near.nextafter(near + 1), near).float()
        q[first : first + n] = wide.div_(torch.where(s > 0, s, 1.0).unsqueeze(-1)).round_()
    return q, scale


@torch.library.custom_op("axon::int8_product", mutates_args=(), device_types="cpu")
def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return s ⊙ (x qᵀ) on a CPU: `(n d), (r d), (r) -> (n r)`, in x's dtype.

    Up to 16 rows in bfloat16, of 16, 32, … features, read the 8-bit numbers as they are. For others, the weight is
    widened to x's dtype in pieces that fit in a processor's cache, one after the other in the same memory. It is a
    custom operator, so that autograd and `torch.compile` know it.
    """
    s = scale.to(x.dtype)
    if x.dtype == torch.bfloat16 and len(x) <= _ROWS and x.shape[1] % 16 == 0 and _aligned(weight):
        x = x.contiguous()
        return torch.ops.aten._weight_int8pack_mm(x if _aligned(x) else x.clone(), weight, s)
    out = x.new_empty(len(x), len(weight))
    n = max(1, _WIDENED // max(1, weight.shape[1]))
    buffer = x.new_empty(min(n, len(weight)), weight.shape[1])
    for y, q, scales in zip(out.split(n, 1), weight.split(n), s.split(n), strict=True):
        torch.mul(affine(x, buffer[: len(q)].copy_(q)), scales, out=y)
    return out


def _aligned(x: Tensor) -> bool:
    """Whether x begins where whole registers can be read: elsewhere, torch's 8-bit kernel crashes the process."""
    return x.is_contiguous() and x.data_ptr() % 64 == 0


@int8_product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    weight, scale = ctx.saved_tensors
    return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None


int8_product.register_autograd(_gradients, setup_context=_keep)


class Int8Linear(QuantizedLinear):
    """A linear map with an 8-bit weight and a scale for each output: `(... d) -> (... r)`, y = s ⊙ (x qᵀ) + b."""

    scale: Tensor

    def take(self, weight: Float[Tensor, "r d"]) -> None:
        """Round a weight to 8 bits."""
        q, scale = to_int8(weight)
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale)

    def product(self, x: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "n o"]:
        """Return s ⊙ (x qᵀ) for these rows of q."""
        weight, scale = self.weight[rows], self.scale[rows]
        # Sums of whole numbers are up to 127 / max|w| times the outputs, more than float16 can hold.
        wide = x.to(torch.float32 if x.dtype == torch.float16 else x.dtype)
        if x.device.type == "cpu" and not (len(x) == 1 and torch.compiler.is_compiling()):
            y = int8_product(wide, weight, scale)
        else:  # compiled, a loop that widens each number as it multiplies it
            y = affine(wide, weight.to(wide.dtype)) * scale
        return y.to(x.dtype)

    def widened(self) -> Float[Tensor, "r d"]:
        """Return s ⊙ q in float32."""
        return self.weight * self.scale.unsqueeze(-1)


class Int8(Quantization):
    """8 bits and a scale for each output: half the memory of bfloat16, and nearly its results."""

    def quantize(self, original: nn.Linear | TiedLinear) -> Int8Linear:
        """Return the map with its weight in 8 bits."""
        return Int8Linear(original)
