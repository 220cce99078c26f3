"""The conformance kit catches broken quantisations: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from caught import Row, assert_caught
from torch import Tensor, nn

from axon_core.nn import TiedLinear
from axon_core.nn.quantization import Quantization, QuantizedLinear


class Rounded(QuantizedLinear):
    """Whole numbers from −7 to 7 and a scale for each row, multiplied in plain torch."""

    scale: Tensor

    def take(self, weight: Tensor) -> None:
        scale = weight.detach().float().abs().amax(1, keepdim=True) / 7
        q = (weight.detach().float() / scale).round().to(torch.int8)
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale)

    def product(self, x: Tensor, rows: slice) -> Tensor:
        return x @ self.widened()[rows].T.to(x.dtype)

    def widened(self) -> Tensor:
        return self.weight.float() * self.scale


class Healthy(Quantization):
    """Makes `Rounded` of a map."""

    kind: type[QuantizedLinear] = Rounded

    def quantize(self, original: nn.Linear | TiedLinear) -> QuantizedLinear:
        return self.kind(original)


class TooFew(Rounded):
    def take(self, weight: Tensor) -> None:
        super().take(weight.detach().sign() * 0.1)


class OtherRows(Rounded):
    def product(self, x: Tensor, rows: slice) -> Tensor:
        return super().product(x, rows).flip(-1)


class NotSplit(Rounded):
    def forward(self, x: Tensor) -> Any:
        return self._compute(x, slice(0, self.outputs))


class RoundsTheEmbedding(Rounded):
    def __init__(self, original: nn.Linear | TiedLinear) -> None:
        super().__init__(original)
        if isinstance(original, TiedLinear):
            original.weight.data = self.widened()


class MadeAtOnce(Rounded):
    def __init__(self, original: nn.Linear | TiedLinear) -> None:
        super().__init__(original)
        self.kept = None if self.weight.is_meta else self.widened()

    def product(self, x: Tensor, rows: slice) -> Tensor:
        weight = torch.zeros(self.outputs, self.inputs) if self.kept is None else self.kept
        return x @ weight[rows].T.to(x.dtype)


class CastsItsScale(Rounded):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return nn.Module._apply(self, fn, recurse)


class Detached(Rounded):
    def product(self, x: Tensor, rows: slice) -> Tensor:
        return super().product(x.detach(), rows) + 0 * x.sum(-1, keepdim=True)


class DependsOnRows(Rounded):
    """A sum in another order for many rows, hidden from `rows_depend`."""

    def product(self, x: Tensor, rows: slice) -> Tensor:
        terms = x.unsqueeze(1) * self.widened()[rows].to(x.dtype)
        return terms.sum(-1) if len(x) < 4 else terms.flip(-1).cumsum(-1)[..., -1]


class SavesItself(Rounded):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


class WritesIntoItsInput(Rounded):
    def product(self, x: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            x.mul_(2).div_(2.0001)
        return super().product(x, rows)


def of(kind: type[QuantizedLinear]) -> type[Quantization]:
    return type(kind.__name__, (Healthy,), {"kind": kind, "__module__": __name__})


class DescribesNothing(Healthy):
    class Config(Quantization.Config):
        bits: int = 4


ROWS: list[Row] = [
    (of(TooFew), "error", set()),
    (of(OtherRows), "product", {"tied", "gradient", "stacked"}),
    (of(NotSplit), "stacked", set()),
    (of(RoundsTheEmbedding), "tied", set()),
    (of(MadeAtOnce), "loaded", set()),
    (of(CastsItsScale), "cast", {"product"}),
    (of(Detached), "gradient", set()),
    (of(DependsOnRows), "rows_apart", set()),
    (of(SavesItself), "not_saved", set()),
    (of(WritesIntoItsInput), "inputs_unchanged", {"product", "gradient", "tied", "loaded", "rows_apart", "stacked"}),
    (DescribesNothing, "config_json", set()),
]


def test_a_healthy_quantisation_passes() -> None:
    from axon_core.testing import examine

    assert examine(Healthy) == {}


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_quantisation_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
