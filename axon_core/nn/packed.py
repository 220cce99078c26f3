"""Linear maps of which every row of the result has the same bits, however many rows there are and wherever it stands.

A library's matrix product chooses its tiles, and with them the order of its sums, by the number of rows: a token's
features then depend on what is computed beside it. Here the sum over d has one order. The weights are packed once, into
panels of outputs that lie side by side for each input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from axon_core.errors import UsageError
from axon_core.nn._huge_pages import use_huge_pages
from axon_core.nn._native import lanes, library
from axon_core.nn.activation import GatedSiLU, PackedGatedSiLU
from axon_core.nn.int8 import Int8Linear
from axon_core.nn.linear import Linear, StackedLinear, TiedLinear, rows_of
from axon_core.nn.quantization import QuantizedLinear, copy_replacing
from axon_core.precision import wide_dtype, widen

__all__ = ["PackedLinear", "pack_products", "pack_weight", "packed_product"]

_LINEAR = (nn.Linear, Linear, StackedLinear, TiedLinear, Int8Linear)
M = TypeVar("M", bound=nn.Module)

_WIDENED = 1 << 18  # numbers of a weight that the plain version widens at once: what a processor's cache holds
_TILE = 16  # rows of the plain version's products on an accelerator
_LARGE = 1 << 21  # bytes of a weight that is worth huge pages
_VECTORS = 2  # registers of a panel
_TOGETHER = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}  # inputs that lie side by side: 32 bits


def pack_weight(weight: Shaped[Tensor, "r d"]) -> Shaped[Tensor, "p s w g"]:
    """Return a weight in panels: `packed[p, s, i, j]` is `weight[p · w + i, s · g + j]`, and 0 beyond its ends.

    A panel has w outputs, two registers of this processor. g is 2 for bfloat16, 4 for int8 (in the order 0, 2, 1, 3)
    and 1 otherwise. float16 becomes float32.
    """
    weight = weight.detach()
    if weight.dtype == torch.float16:
        weight = weight.float()
    width, group = lanes() * _VECTORS, _TOGETHER.get(weight.dtype, 1)
    r, d = weight.shape
    padded = weight.new_zeros(-(-r // width) * width, -(-d // group) * group)
    padded[:r, :d] = weight
    panels = padded.view(-1, width, padded.shape[1] // group, group).transpose(1, 2)
    return _crossed(panels).contiguous()


def _crossed(panels: Shaped[Tensor, "*any g"]) -> Shaped[Tensor, "*any g"]:
    """Panels with the middle two of four inputs changed places, so that both pairs are in their order as 16 bits."""
    return panels[..., [0, 2, 1, 3]] if panels.shape[-1] == 4 else panels


def packed_product(
    x: Float[Tensor, "n d"],
    weight: Shaped[Tensor, "p s w g"],
    outputs: int,
    *,
    scale: Float[Tensor, " r"] | None = None,
    bias: Float[Tensor, " r"] | None = None,
) -> Float[Tensor, "n r"]:
    """Return s ⊙ (x Wᵀ) + b for a weight of `pack_weight`, with r = `outputs`: every row has the same bits for any n.

    Everything is summed in float32 (float64 for float64), one input after the other, and rounded once, to x's dtype.
    bfloat16 rows and weights are multiplied with AMX on processors that have it, where even and odd inputs are summed
    apart, 32 at a time, and numbers below the smallest normal float32 are 0; with `AXON_NO_AMX=1` in the environment,
    or where the system forbids it, the whole process computes without. 8-bit weights give the same bits either way.
    With 8-bit weights on a CPU, x is first rounded to 16 bits in pieces of 512 inputs of a row, each with the smallest
    power of two as its step; what it is multiplied by is exact. On an accelerator the rows are computed in tiles of
    16, which no test here has run.

    Raises:
        UsageError: a gradient is asked for; sizes do not fit.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise UsageError("packed weights have no gradients; run the model under torch.inference_mode(), or unpacked")
    width, group = weight.shape[2:]
    if not (0 <= weight.shape[1] * group - x.shape[1] < group and 0 <= weight.shape[0] * width - outputs < width):
        raise UsageError(
            f"the packed weight must have {x.shape[1]} inputs and {outputs} outputs, got panels {tuple(weight.shape)}"
        )
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and weight.dtype in _TOGETHER:
        return torch.ops.axon.packed_product(x.contiguous(), weight, scale, bias, outputs)
    return _plain_product(x, weight, scale, bias, outputs)


def _plain_product(
    x: Float[Tensor, "n d"],
    weight: Shaped[Tensor, "p s w g"],
    scale: Float[Tensor, " r"] | None,
    bias: Float[Tensor, " r"] | None,
    outputs: int,
) -> Float[Tensor, "n r"]:
    """`packed_product` in plain torch: products of fixed shapes, of a single row on a CPU."""
    (n, d), wide = x.shape, wide_dtype(x.dtype)
    rows = 1 if x.device.type == "cpu" else _TILE
    tiles = x.new_zeros(-(-n // rows) * rows, d, dtype=wide)
    tiles[:n] = x
    y = tiles.new_empty(len(tiles), weight.shape[0] * weight.shape[2])
    panels = max(1, _WIDENED // weight[0].numel())
    row = tiles.new_empty(rows, d)  # at one place in memory, since a library also chooses by how the rows are aligned
    for part, out in zip(weight.split(panels), y.split(panels * weight.shape[2], 1), strict=True):
        w = _crossed(part).transpose(1, 2).reshape(out.shape[1], -1)[:, :d].to(wide).contiguous()
        for i in range(0, len(tiles), rows):
            row.copy_(tiles[i : i + rows])
            out[i : i + rows] = torch.mv(w, row[0]) if rows == 1 else row @ w.T
    y = y[:n, :outputs]
    if scale is not None:
        y = y * scale.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype).contiguous()


library.define("packed_product(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int outputs) -> Tensor")
library.impl("packed_product", _plain_product, "CompositeExplicitAutograd")


def _shape(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


torch.library.register_fake("axon::packed_product", _shape, lib=library)


class PackedLinear(nn.Module):
    """A linear map for inference, `(... d) -> (... r)`, whose rows do not depend on their number: y = x Wᵀ + b.

    Made from an `Int8Linear`, its weight stays in 8 bits: y = s ⊙ (x qᵀ) + b. Made from a `StackedLinear`, it returns
    several results as that does.

    Raises:
        UsageError: a gradient is asked for, or the layer is cast to another dtype.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, original: nn.Linear | TiedLinear | Int8Linear) -> None:
        super().__init__()
        self.rows = original.rows if isinstance(original, StackedLinear | Int8Linear) else None
        self.outputs, self.inputs = original.weight.shape
        self.register_buffer("weight", pack_weight(original.weight))
        self.register_buffer("scale", original.scale if isinstance(original, Int8Linear) else None)
        bias: Tensor | None = original.bias
        self.register_buffer("bias", None if bias is None else widen(bias.detach()))

    @property
    def local_rows(self) -> list[int] | None:
        """How many outputs each of a `StackedLinear`'s maps has; None for a single map."""
        return self.rows

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... r"] | tuple[Float[Tensor, "... _"], ...]:
        """Return the outputs, in x's dtype."""
        y = self._compute(x, slice(0, self.outputs))
        return y if self.rows is None else torch.split(y, self.rows, -1)

    def compute_maps(self, x: Float[Tensor, "... d"], first: int, last: int) -> Float[Tensor, "... r"]:
        """Return the outputs of a `StackedLinear`'s maps from `first` to before `last` alone, side by side."""
        assert self.rows is not None, "a single map has no others beside it"
        return self._compute(x, rows_of(self.rows, first, last))

    def _compute(self, x: Float[Tensor, "... d"], rows: slice) -> Float[Tensor, "... r"]:
        """The outputs of `rows`, from the whole panels that hold them."""
        width = self.weight.shape[2]
        panels = slice(rows.start // width, -(-rows.stop // width))
        begin, end = panels.start * width, min(panels.stop * width, self.outputs)
        scale, bias = (None if each is None else each[begin:end] for each in (self.scale, self.bias))
        flat = x.reshape(-1, self.inputs)
        y = packed_product(flat, self.weight[panels], end - begin, scale=scale, bias=bias)
        return y[:, rows.start - begin : rows.stop - begin].view(*x.shape[:-1], rows.stop - rows.start)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"inputs={self.inputs}, outputs={self.outputs}, dtype={self.weight.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Follow the module to another device; the layout fits no other dtype."""
        if fn(self.weight[:0]).dtype != self.weight.dtype:
            raise UsageError("a packed weight cannot be cast; cast the original model, and pack that")
        return super()._apply(fn, recurse)  # pyright: ignore[reportReturnType]

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise UsageError("a packed model cannot be saved; save the original model, and pack it after loading")


def pack_products(model: M) -> M:
    """Return a copy of `model` for inference whose linear maps, 8-bit ones included, are `PackedLinear`.

    Gates (`GatedSiLU`) are computed with `gated_silu`.
    Its tokens' features then do not depend on how many tokens are computed beside them, as far as its other parts keep
    that too (`rows_depend`). Everything else shares its memory with `model`; packed weights are copies, also where the
    head shares its weight with the embedding. The copy can be neither trained nor saved. The first call compiles the
    kernels, in some seconds; without a C++ compiler, a warning says that a slower version runs.
    """
    parts: dict[nn.Module, nn.Module] = {m: PackedGatedSiLU() for m in model.modules() if type(m) is GatedSiLU}
    for module in model.modules():  # subclasses compute in their own way
        if isinstance(module, nn.Linear | TiedLinear | Int8Linear) and type(module) in _LINEAR:
            parts[module] = PackedLinear(module)
        elif isinstance(module, QuantizedLinear):
            parts[module] = module.packed()
    packed = copy_replacing(model, parts)
    weights = (m.weight for m in packed.modules() if isinstance(m, PackedLinear))
    use_huge_pages(weight for weight in weights if weight.nbytes >= _LARGE)
    return packed
