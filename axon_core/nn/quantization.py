"""Weights in few bits: what replaces the linear maps of a model, and the registry of the ways to do so."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core import config
from axon_core.errors import UsageError
from axon_core.interfaces.model import Model
from axon_core.nn.linear import Linear, StackedLinear, TiedLinear, rows_of
from axon_core.registry.registry import Registry
from axon_core.registry.spec import Spec

__all__ = ["QUANTIZATIONS", "Quantization", "QuantizedLinear", "copy_replacing", "quantize"]

M = TypeVar("M", bound=Model)
_Module = TypeVar("_Module", bound=nn.Module)


class QuantizedLinear(nn.Module, ABC):
    """A linear map whose weight W is stored in few bits: `(... d) -> (... r)`, y = x Wᵀ + b.

    Inputs and outputs stay as they are. The weight has no gradient; the input's passes through. Made from a
    `StackedLinear`, it returns several results as that does. A map without weights (`weightless`) makes one that rounds
    the weight when it is loaded.

    Attributes:
        rows: how many outputs each of a `StackedLinear`'s maps has; None for a single map.
        names: what each of those is called; empty for a single map.
        outputs, inputs: the sizes r and d.
        weight: the stored numbers; what else belongs to them are other buffers.
        bias: b, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, original: nn.Linear | TiedLinear) -> None:
        super().__init__()
        self.rows = original.rows if isinstance(original, StackedLinear) else None
        self.names = original.names if isinstance(original, StackedLinear) else []
        self.outputs, self.inputs = original.weight.shape
        bias: Tensor | None = original.bias
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.take(original.weight)

    @abstractmethod
    def take(self, weight: Float[Tensor, "r d"]) -> None:
        """Round a weight and store it in buffers, `weight` among them; one on the meta device leaves them there."""

    @abstractmethod
    def product(self, x: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "n o"]:
        """Return x Wᵀ for these rows of W, in x's dtype; the gradient of x passes through it."""

    @abstractmethod
    def widened(self) -> Float[Tensor, "r d"]:
        """Return W in float32: exactly what the stored numbers stand for."""

    def packed(self) -> nn.Module:
        """Return the map for `pack_products`, whose rows do not depend on their number; itself where there is none."""
        return self

    @property
    def local_rows(self) -> list[int] | None:
        """How many outputs each of a `StackedLinear`'s maps has; None for a single map."""
        return self.rows

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... o"] | tuple[Float[Tensor, "... _"], ...]:
        """Return the outputs. On a CPU the weight is never widened as a whole."""
        y = self._compute(x, slice(0, self.outputs))
        return y if self.rows is None else torch.split(y, self.rows, -1)

    def compute_maps(self, x: Float[Tensor, "... d"], first: int, last: int) -> Float[Tensor, "... r"]:
        """Return the outputs of a `StackedLinear`'s maps from `first` to before `last` alone, side by side."""
        assert self.rows is not None, "a single map has no others beside it"
        return self._compute(x, rows_of(self.rows, first, last))

    def _compute(self, x: Float[Tensor, "... d"], rows: slice) -> Float[Tensor, "... r"]:
        if torch.is_autocast_enabled(kind := x.device.type) and x.dtype != torch.float64:  # as of any linear map
            x = x.to(torch.get_autocast_dtype(kind))
        y = self.product(x.reshape(-1, self.inputs), rows)
        return self.added(y if x.ndim == 2 else y.view(*x.shape[:-1], rows.stop - rows.start), rows)

    def added(self, y: Float[Tensor, "... o"], rows: slice) -> Float[Tensor, "... o"]:
        """Return y + b; a product that adds it itself replaces this."""
        return y if self.bias is None else y + self.bias[rows].to(y.dtype)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"inputs={self.inputs}, outputs={self.outputs}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Follow the module to another device; what belongs to the weight keeps its dtype."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and name != "bias"}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = self.get_buffer(name)
            if now.dtype != before.dtype:
                setattr(self, name, now.to(before.dtype) if before.is_meta else before.to(now.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the tensors of the layer this replaces (see `load_weights`); the weight is rounded."""
        if f"{prefix}weight" in state_dict:
            self.take(state_dict[f"{prefix}weight"])
        if f"{prefix}bias" in state_dict:
            self.bias = state_dict[f"{prefix}bias"].detach().clone()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UsageError(
            "a model with quantised weights cannot be saved; save the original model, and quantise it after loading"
        )


class Quantization(ABC):
    """A way to store the weights of linear maps in few bits, for inference or below something that is trained."""

    class Config(config.Config):
        """The options of the quantisation; most have none."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options the conformance kit builds it with; one variant each."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def quantize(self, original: nn.Linear | TiedLinear) -> QuantizedLinear:
        """Return what stands in the place of a map; a map on the meta device makes one that still has no weight."""


QUANTIZATIONS: Registry[Quantization] = Registry("quantization", Quantization)
"""Quantisations by key."""


def quantize(model: M, spec: Spec | str | Mapping[str, Any] = "int8") -> M:
    """Return a copy of `model` for inference whose linear layers, the head included, hold weights in few bits.

    `spec` names a quantisation of `QUANTIZATIONS`. Embeddings and norms share their memory with `model`. The copy can
    be neither trained nor saved; it is made in seconds from the trained model. The copy of a model without weights
    (`weightless`) rounds them as it takes them (`load_weights`), so that the two are never in memory together.

    Raises:
        UnknownKey: no quantisation of that name is installed.
        ConfigError: an option breaks a rule.
    """
    quantization = QUANTIZATIONS.build(spec)
    linear = (nn.Linear, Linear, StackedLinear, TiedLinear)  # subclasses compute in their own way
    maps = [m for m in model.modules() if isinstance(m, nn.Linear | TiedLinear) and type(m) in linear]
    return copy_replacing(model, {m: quantization.quantize(m) for m in maps})


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
