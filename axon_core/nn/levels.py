"""Weights as codes of 4 bits, each of which names one of 16 levels, with a scale for each block of them.

Weight i is `levels[code i] · scale[i // block]`, counted row by row. The codes lie two to a byte, the first in the high
half, as in bitsandbytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from axon_core.errors import UsageError
from axon_core.nn._native import compile_kernels, library
from axon_core.nn.linear import TiedLinear, affine
from axon_core.nn.quantization import QuantizedLinear
from axon_core.precision import wide_dtype, widen

__all__ = ["LevelLinear", "PackedLevels", "coded_product", "levels_product", "widen_levels"]

_ROWS = 16  # the most for which a product is faster on the 4 bits themselves than on widened ones
_WIDENED = 1 << 18  # numbers of a weight that are widened at once: what a processor's cache holds
_MANY_ROWS, _MANY_WIDENED = 128, 1 << 24  # for so many rows it is better to start fewer products: 32 MB in bfloat16


def widen_levels(
    codes: UInt8[Tensor, " n2"],
    scales: Float[Tensor, " blocks"],
    levels: Float[Tensor, 16],
    block: int,
    first: int,
    count: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " count"]:
    """Return the weights from `first` to before `first + count`: `levels[code] · scale`, rounded once, to `dtype`.

    The scales are in float32 or bfloat16. On a CPU this is a kernel once the kernels are loaded (`compile_kernels`).
    """
    narrow = dtype == torch.bfloat16
    run = torch.ops.axon.widen_levels if codes.device.type == "cpu" and block % 16 == 0 else _plain_widen
    return run(codes, scales, levels, block, first, count, narrow).to(dtype)


def _plain_widen(
    codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, count: int, narrow: bool
) -> Tensor:
    """`widen_levels` in plain torch, to float32 or bfloat16."""
    pairs = codes[first // 2 : (first + count + 1) // 2]
    both = torch.stack((pairs >> 4, pairs & 15), -1).flatten()[first % 2 : first % 2 + count]
    blocks = torch.arange(first, first + count, device=codes.device).div_(block, rounding_mode="floor")
    wide = levels[both.int()] * scales.float()[blocks]
    return wide.bfloat16() if narrow else wide


library.define(
    "widen_levels(Tensor codes, Tensor scales, Tensor levels, int block, int first, int count, bool narrow) -> Tensor"
)
library.impl("widen_levels", _plain_widen, "CompositeExplicitAutograd")


def _widened_shape(
    codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, count: int, narrow: bool
) -> Tensor:
    return levels.new_empty(count, dtype=torch.bfloat16 if narrow else torch.float32)


torch.library.register_fake("axon::widen_levels", _widened_shape, lib=library)


def coded_product(
    x: Float[Tensor, "n d"],
    codes: UInt8[Tensor, " n2"],
    scales: Float[Tensor, " blocks"],
    levels: Float[Tensor, 16],
    block: int,
    *,
    first: int,
    outputs: int,
    bias: Float[Tensor, " r"] | None = None,
) -> Float[Tensor, "n r"]:
    """Return x Wᵀ + b for the rows of W from `first` on, r = `outputs`: every row has the same bits for any n.

    W is what `widen_levels` returns in float32. Nothing but the sums is rounded on the way, in float32 and in one
    order; the result is rounded once, to x's dtype.

    Raises:
        UsageError: a gradient is asked for.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise UsageError("packed weights have no gradients; run the model under torch.inference_mode(), or unpacked")
    run = torch.ops.axon.coded_product if _has_kernel(x, block) else _plain_product
    return run(x.contiguous(), codes, scales, levels, bias, block, first, outputs)


def _has_kernel(x: Tensor, block: int) -> bool:
    whole = x.shape[1] % 8 == 0 and block % 8 == 0
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and whole


def _plain_product(
    x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, bias: Tensor | None, block: int, first: int, outputs: int
) -> Tensor:
    """`coded_product` in plain torch: products of one row each, which is at one place in memory."""
    wide = x.to(wide_dtype(x.dtype))
    y, row = wide.new_empty(len(x), outputs), wide.new_empty(x.shape[1])
    for at, rows, w in _pieces(wide, codes, scales, levels, block, first, outputs):
        for i in range(len(x)):
            y[i, at : at + rows] = torch.mv(w, row.copy_(wide[i]))
    return (y if bias is None else y + bias).to(x.dtype)


library.define(
    "coded_product(Tensor x, Tensor codes, Tensor scales, Tensor levels, Tensor? bias, int block, int first,"
    " int outputs) -> Tensor"
)
library.impl("coded_product", _plain_product, "CompositeExplicitAutograd")


def _product_shape(
    x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, bias: Tensor | None, block: int, first: int, outputs: int
) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


torch.library.register_fake("axon::coded_product", _product_shape, lib=library)


@torch.library.custom_op("axon::levels_product", mutates_args=())
def levels_product(
    x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor, block: int, first: int, outputs: int
) -> Tensor:
    """Return x Wᵀ for the rows of W from `first` on, `(n d) -> (n outputs)`, in x's dtype.

    Up to 16 rows on a CPU are a `coded_product`. For more, W is widened to x's dtype in pieces: for up to 128 rows as
    large as a processor's cache, for more of up to 2²⁴ numbers. The operator has a derivative for x, which widens the
    pieces again; `torch.compile` knows it.
    """
    if x.device.type == "cpu" and compile_kernels() and len(x) <= _ROWS and _has_kernel(x, block):
        return torch.ops.axon.coded_product(x.contiguous(), codes, scales, levels, None, block, first, outputs)
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
    step = max(1, (_MANY_WIDENED if len(like) > _MANY_ROWS else _WIDENED) // max(1, d))
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

    def packed(self) -> PackedLevels:
        """Return the map whose rows do not depend on their number; it shares the codes."""
        return PackedLevels(self)


class PackedLevels(QuantizedLinear):
    """The map of a `LevelLinear` for inference, whose rows do not depend on their number (`coded_product`).

    Raises:
        UsageError: a gradient is asked for.
    """

    scale: Tensor
    table: Tensor

    def __init__(self, original: LevelLinear) -> None:
        nn.Module.__init__(self)
        compile_kernels()
        self.rows, self.outputs, self.inputs = original.rows, original.outputs, original.inputs
        self.block = original.block
        bias = original.bias
        self.register_buffer("bias", None if bias is None else widen(bias))
        for name, tensor in {"weight": original.weight, "scale": original.scales(), "table": original.table}.items():
            self.register_buffer(name, tensor)

    def take(self, weight: Float[Tensor, "r d"]) -> None:
        """Weights are loaded before they are packed.

        Raises:
            UsageError: always.
        """
        raise UsageError("a packed weight cannot be replaced; load the original model, and pack that")

    def product(self, x: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "n o"]:
        """Return x Wᵀ + b for these rows of W, rounded once."""
        bias = None if self.bias is None else self.bias[rows]
        stored = self.weight, self.scale, self.table, self.block
        return coded_product(x, *stored, first=rows.start, outputs=rows.stop - rows.start, bias=bias)

    def added(self, y: Float[Tensor, "... o"], rows: slice) -> Float[Tensor, "... o"]:
        """Return `y`: the product has the bias."""
        return y

    def widened(self) -> Float[Tensor, "r d"]:
        """Return W in float32."""
        stored = self.weight, self.scale, self.table, self.block
        return widen_levels(*stored, 0, self.outputs * self.inputs).view(self.outputs, self.inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLevels:
        """Follow the module to another device; the bias stays in float32."""
        bias = self.bias
        super()._apply(fn, recurse)
        self.bias = None if bias is None else bias.to(self.weight.device)
        return self
