"""Matrix products: the linear map of a layer, several as one, and which library computes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Linear", "StackedLinear", "TiedLinear", "affine", "product", "rows_of"]


def _mkl_falls_behind() -> bool:
    """Whether torch's float32 products come from MKL on a processor for which MKL withholds its AVX-512 kernels."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        with Path("/proc/cpuinfo").open() as file:
            vendor = file.read(64)  # the second line
    except OSError:  # not Linux: torch's own choice stays
        return False
    return "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


_ONEDNN = _mkl_falls_behind()
_ROWS, _PRODUCTS = 128, 1 << 23
"""The fewest rows and multiplications for which oneDNN is worth its cost: some 30 µs, and W in another layout."""


def affine(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "r d"], bias: Float[Tensor, " r"] | None = None
) -> Float[Tensor, "... r"]:
    """Return x Wᵀ + b as `torch.nn.functional.linear` does, with the library that is fastest at it.

    In float32 on an AMD processor with AVX-512 that is oneDNN, in half of MKL's time (`product`); everywhere else, and
    for few rows, it is the library that torch chooses.
    """
    if (
        _ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and (rows := x.shape[:-1].numel()) >= _ROWS
        and rows * weight.numel() >= _PRODUCTS
    ):
        y = product(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return functional.linear(x, weight, bias)


@torch.library.custom_op("axon::product", mutates_args=(), device_types="cpu")
def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a bᵀ in float32, computed by oneDNN: `(n d), (r d) -> (n r)`. Transposed matrices are read as they are.

    It is a custom operator with derivatives of every order, so that autograd and `torch.compile` know it.
    """
    return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), None, "none", [], "")


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


def _dense(a: Tensor) -> Tensor:
    """`a`, copied unless its rows or its columns are contiguous: oneDNN would read it hundreds of times more slowly."""
    return a if a.is_contiguous() or a.T.is_contiguous() else a.contiguous()


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    wanted_a, wanted_b = ctx.needs_input_grad
    return product(gradient, b.T) if wanted_a else None, product(gradient.T, a.T) if wanted_b else None


product.register_autograd(_gradients, setup_context=_keep)


class Linear(nn.Linear):
    """`torch.nn.Linear`, with the product of `linear`: `(... d) -> (... r)`, y = x Wᵀ + b."""

    def forward(self, input: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        """Return the outputs."""
        return affine(input, self.weight, self.bias)


class TiedLinear(nn.Module):
    """A linear map whose weight is an embedding's, `(... d) -> (... r)`: y = x Wᵀ. It has no tensors of its own.

    An output head is one, so that it can be replaced by a map of 8-bit or packed weights; the embedding then stays.
    """

    bias: None = None

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, it is not a part of this module

    @property
    def weight(self) -> Float[Tensor, "r d"]:
        """The embedding's weight."""
        return self._embedding[0].weight

    def forward(self, input: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        """Return the outputs."""
        return affine(input, self.weight)


class StackedLinear(Linear):
    """Linear maps of the same input, computed as one: `(... d) -> (... r₁), (... r₂), …`.

    `weight` holds the rows of the first matrix, then those of the second, and so on; `rows` says how many each has, for
    code that treats the matrices separately (an optimiser, or a checkpoint of another layout).

    Attributes:
        rows: how many rows each matrix has.
        names: what each matrix is called, such as `q`, `k` and `v`; by default its number.
        divided_by: how many processes share the rows of each (`TensorSplit`); this one computes `local_rows` of them.
    """

    def __init__(
        self, dim: int, rows: Sequence[int], *, bias: bool = False, names: Sequence[str] | None = None
    ) -> None:
        super().__init__(dim, sum(rows), bias=bias)
        self.rows = list(rows)
        self.names = list(names or map(str, range(len(rows))))
        self.divided_by = 1

    @property
    def local_rows(self) -> list[int]:
        """How many rows of each matrix this process computes."""
        return [rows // self.divided_by for rows in self.rows]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - several results, on purpose
        self, input: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... r"], ...]:
        """Return the outputs of the maps, in their order."""
        return torch.split(super().forward(input), self.local_rows, -1)

    def compute_maps(self, input: Float[Tensor, "... d"], first: int, last: int) -> Float[Tensor, "... r"]:
        """Return the outputs of the maps from `first` to before `last` alone, side by side."""
        rows = rows_of(self.local_rows, first, last)
        return affine(input, self.weight[rows], None if self.bias is None else self.bias[rows])  # pyright: ignore[reportUnnecessaryComparison]


def rows_of(rows: Sequence[int], first: int, last: int) -> slice:
    """Return where the rows of the maps from `first` to before `last` lie, of maps that have so many `rows` each."""
    return slice(sum(rows[:first]), sum(rows[:last]))
