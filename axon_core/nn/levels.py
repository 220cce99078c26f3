"""Weights as codes of 4 bits, each of which names one of 16 levels, with a scale for each block of them.

Weight i is `levels[code i] · scale[i // block]`, counted row by row. The codes lie two to a byte, the first in the high
half, as in bitsandbytes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from axon_core.nn._native import library
from axon_core.nn.linear import TiedLinear, affine
from axon_core.nn.quantization import QuantizedLinear

__all__ = ["LevelLinear", "levels_product", "widen_levels"]

_WIDENED = 1 << 18  # numbers of a weight that are widened at once: what a processor's cache holds


def widen_levels(
    codes: UInt8[Tensor, " n2"],
    scales: Float[Tensor, " blocks"],
    levels: Float[Tensor, 16],
    block: int,
    first: int,
    count: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " count"]:
    """Return the weights from `first` to before `first + count`: `levels[code] · scale`, rounded once, to `dtype`."""
    return torch.ops.axon.widen_levels(codes, scales, levels, block, first, count, dtype)


def _widen(
    codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, count: int, dtype: torch.dtype
) -> Tensor:
    pairs = codes[first // 2 : (first + count + 1) // 2]
    both = torch.stack((pairs >> 4, pairs & 15), -1).flatten()[first % 2 : first % 2 + count]
    blocks = torch.arange(first, first + count, device=codes.device).div_(block, rounding_mode="floor")
    return (levels[both.int()] * scales.float()[blocks]).to(dtype)


library.define(
    "widen_levels(Tensor codes, Tensor scales, Tensor levels, int block, int first, int count, ScalarType dtype)"
    " -> Tensor"
)
library.impl("widen_levels", _widen, "CompositeExplicitAutograd")


def _widen_shape(
    codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, count: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(count, dtype=dtype)


torch.library.register_fake("axon::widen_levels", _widen_shape, lib=library)


@torch.library.custom_op("axon::levels_product", mutates_args=())
def levels_product(
    x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, outputs: int
) -> Tensor:
    """Return x Wᵀ for the rows of W from `first` on, `(n d) -> (n outputs)`, in x's dtype.

    W is widened to x's dtype in pieces that fit in a processor's cache. The operator has a derivative for x, which
    widens the pieces again, and is known to `torch.compile`.
    """
    out = x.new_empty(len(x), outputs)
    for at, rows, w in _pieces(x, codes, scales, levels, block, first, outputs):
        out[:, at : at + rows] = affine(x, w)
    return out


@levels_product.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


@torch.library.custom_op("axon::levels_product_back", mutates_args=())
def _levels_product_back(
    gradient: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, inputs: int
) -> Tensor:
    """The gradient of x in `levels_product`: `(n outputs) -> (n d)`, dx = dy W."""
    total = gradient.new_zeros(len(gradient), inputs)
    for at, rows, w in _pieces(total, codes, scales, levels, block, first, gradient.shape[1]):
        total.addmm_(gradient[:, at : at + rows], w)
    return total


@_levels_product_back.register_fake
def _(gradient: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, inputs: int) -> Tensor:
    return gradient.new_empty(gradient.shape[0], inputs)


def _pieces(like: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, outputs: int) -> Any:
    """Yield rows of W, widened to the dtype of `like`: the first one's number, how many there are, and the piece."""
    d = like.shape[1]
    step = max(1, _WIDENED // max(1, d))
    for at in range(0, outputs, step):
        rows = min(step, outputs - at)
        yield at, rows, widen_levels(codes, scales, levels, block, (first + at) * d, rows * d, like.dtype).view(rows, d)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *weight, block, first, _ = inputs
    ctx.save_for_backward(*weight)
    ctx.block, ctx.first, ctx.inputs = block, first, x.shape[1]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    back = _levels_product_back(gradient, *ctx.saved_tensors, ctx.block, ctx.first, ctx.inputs)
    return back, None, None, None, None, None, None


def _keep_back(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, *weight, block, first, _ = inputs
    ctx.save_for_backward(*weight)
    ctx.block, ctx.first, ctx.outputs = block, first, gradient.shape[1]


def _gradients_back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    forward = levels_product(gradient, *ctx.saved_tensors, ctx.block, ctx.first, ctx.outputs)
    return forward, None, None, None, None, None, None


_levels_product_back.register_autograd(_gradients_back, setup_context=_keep_back)
levels_product.register_autograd(_gradients, setup_context=_keep)


class LevelLinear(QuantizedLinear):
    """A linear map whose weight is codes of 4 bits: `(... d) -> (... r)`, y = x Wᵀ + b, Wᵢ = levels[codeᵢ] · scale.

    A subclass names the 16 `levels` and the weights of a `block`, and says with `take` and `scales` how a weight is
    rounded and where its scales are.
    """

    levels: ClassVar[tuple[float, ...]]
    block: ClassVar[int]
    table: Tensor

    def __init__(self, original: nn.Linear | TiedLinear) -> None:
        super().__init__(original)
        device = "cpu" if original.weight.is_meta else original.weight.device
        self.register_buffer("table", torch.tensor(self.levels, dtype=torch.float32, device=device))

    @abstractmethod
    def scales(self) -> Float[Tensor, " blocks"]:
        """Return the scale of each block of the weight, row by row, in float32 or bfloat16."""

    def product(self, x: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "n o"]:
        """Return x Wᵀ for these rows of W."""
        stored = self.weight, self.scales(), self.table, self.block
        return levels_product(x, *stored, rows.start, rows.stop - rows.start)

    def widened(self) -> Float[Tensor, "r d"]:
        """Return W in float32."""
        flat = widen_levels(self.weight, self.scales(), self.table, self.block, 0, self.outputs * self.inputs)
        return flat.view(self.outputs, self.inputs)
