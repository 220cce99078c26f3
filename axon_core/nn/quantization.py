"""Weights in 8 bits: half the memory of bfloat16, and decoding that reads half as much."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axon_core.errors import UsageError
from axon_core.interfaces.model import Model
from axon_core.nn.linear import Linear, StackedLinear, TiedLinear, affine, rows_of

__all__ = ["QUANTIZATIONS", "Int8Linear", "copy_replacing", "int8_product", "quantize", "to_int8"]

M = TypeVar("M", bound=Model)
_Module = TypeVar("_Module", bound=nn.Module)

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


class Int8Linear(nn.Module):
    """A linear map with an 8-bit weight and a scale for each output: `(... d) -> (... r)`, y = s ⊙ (x qᵀ) + b.

    Inputs and outputs stay as they are. Made from a `StackedLinear`, it returns several results as that does.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, original: nn.Linear | TiedLinear) -> None:
        super().__init__()
        self.rows = original.rows if isinstance(original, StackedLinear) else None
        weight, scale = to_int8(original.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if original.bias is None else original.bias.detach())  # pyright: ignore[reportUnnecessaryComparison]

    @property
    def local_rows(self) -> list[int] | None:
        """How many outputs each of a `StackedLinear`'s maps has; None for a single map."""
        return self.rows

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... o"] | tuple[Float[Tensor, "... _"], ...]:
        """Return the outputs. On a CPU the weight is never widened as a whole."""
        y = self._compute(x, slice(None))
        return y if self.rows is None else torch.split(y, self.rows, -1)

    def compute_maps(self, x: Float[Tensor, "... d"], first: int, last: int) -> Float[Tensor, "... r"]:
        """Return the outputs of a `StackedLinear`'s maps from `first` to before `last` alone, side by side."""
        assert self.rows is not None, "a single map has no others beside it"
        return self._compute(x, rows_of(self.rows, first, last))

    def _compute(self, x: Float[Tensor, "... d"], rows: slice) -> Float[Tensor, "... r"]:
        weight, scale = self.weight[rows], self.scale[rows]
        # Sums of whole numbers are up to 127 / max|w| times the outputs, more than float16 can hold.
        wide = x.to(torch.float32 if x.dtype == torch.float16 else x.dtype)
        n = x.shape[:-1].numel()
        if x.device.type == "cpu" and not (n == 1 and torch.compiler.is_compiling()):
            y = int8_product(wide.reshape(n, x.shape[-1]), weight, scale).view(*x.shape[:-1], -1)
        else:  # compiled, a loop that widens each number as it multiplies it
            y = affine(wide, weight.to(wide.dtype)) * scale
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias[rows]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Follow the module to another device; the scale stays float32."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = self.scale.float() if scale.is_meta else scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the tensors of the layer this replaces (see `load_weights`); the weight is rounded."""
        if f"{prefix}weight" in state_dict:
            self.weight, self.scale = to_int8(state_dict[f"{prefix}weight"])
        if f"{prefix}bias" in state_dict:
            self.bias = state_dict[f"{prefix}bias"].detach().clone()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UsageError(
            "a model with 8-bit weights cannot be saved; save the original model, and quantise it after loading"
        )


QUANTIZATIONS: dict[str, Callable[[nn.Linear | TiedLinear], nn.Module]] = {"int8": Int8Linear}
"""What a linear layer may be replaced by, by name."""


def quantize(model: M, name: str = "int8") -> M:
    """Return a copy of `model` for inference whose linear layers, the head included, hold 8-bit weights.

    Embeddings and norms share their memory with `model`. The copy can be neither trained nor saved; it is made in
    seconds from the trained model. The copy of a model without weights (`weightless`) rounds them as it takes them
    (`load_weights`), so that the two are never in memory together.

    Raises:
        UsageError: there is no quantisation of that name.
    """
    if name not in QUANTIZATIONS:
        raise UsageError(f"there is no quantisation {name!r}; choose among: {', '.join(QUANTIZATIONS)}")
    linear = (nn.Linear, Linear, StackedLinear, TiedLinear)  # subclasses compute in their own way
    maps = [m for m in model.modules() if isinstance(m, nn.Linear | TiedLinear) and type(m) in linear]
    return copy_replacing(model, {m: QUANTIZATIONS[name](m) for m in maps})


def copy_replacing(model: _Module, parts: Mapping[nn.Module, nn.Module]) -> _Module:
    """Return a copy of `model` for inference with these parts in the place of its own.

    Its tensors share the memory of the model's, but are the copy's own: to cast or move it leaves `model` alone.
    """
    replaced: dict[int, object] = {
        id(tensor): nn.Parameter(tensor.detach(), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach()
        for tensor in (*model.parameters(), *model.buffers())
    }
    replaced |= {id(part): other for part, other in parts.items()}
    return copy.deepcopy(model, replaced)
