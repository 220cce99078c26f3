"""Tensor parallelism: the processes of a worker compute each example together, every one with a part of the weights.

A part of a model says by `tensor_split` how its linear layers are divided (`TensorSplit`); all processes compute
everything else alike. While a divided part computes, its parameters are plain tensors: what this process has of them.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.utils._pytree import tree_map

from axon_core.checkpoint.row_order import divided_order, keep_order
from axon_core.errors import ContractError, UsageError
from axon_core.interfaces.tensor_split import TensorSplit
from axon_core.nn.linear import StackedLinear
from axon_core.registry import provenance
from axon_core.training.parallel.units import sharding_units

__all__ = ["declared_parts", "divide", "divided_alone", "divided_axes", "divided_parts", "keep_orders"]

_log = logging.getLogger("axon")


def divide(models: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Divide the parts of models that say how among the processes of a mesh; say what the others cost.

    Raises:
        UsageError: the number of processes does not divide the units of a part.
        ContractError: a part's `tensor_split` does not name linear layers that its units divide.
    """
    n = mesh.size()
    parts = divided_parts(models, n)
    for part, split in parts.items():
        parallelize_module(part, mesh, _Divided(split), src_data_rank=None)
    for kind, matrices in _undivided(models, {module for part in parts for module in part.modules()}).items():
        _log.warning(
            "trainer.parallel.tensor: %s does not say how it is divided, or has weights of another part, so each of %d "
            "processes computes its %d matrices whole",
            kind,
            n,
            matrices,
        )


def divided_parts(models: Sequence[nn.Module], n: int) -> dict[nn.Module, TensorSplit]:
    """Return the parts of models that say how they are divided, and have no weight that another layer has too.

    Raises:
        UsageError: `n` processes do not divide the units of a part.
    """
    places = Counter(id(thing) for module in _once(models) for thing in (*_weights_in(module), *module.children()))
    found: dict[nn.Module, TensorSplit] = {}
    for part, split in declared_parts(models):
        inside = [module for module in part.modules() if module is not part and any(True for _ in module.parameters())]
        if any(places[id(thing)] > 1 for thing in (*inside, *(p for m in part.modules() for p in _weights_in(m)))):
            continue
        if split.units % n:
            raise UsageError(
                f"trainer.parallel.tensor must divide the {split.unit} of {_kind(part)}, but {split.units} % {n} = "
                f"{split.units % n}; change one of them"
            )
        found[part] = split
    return found


def divided_alone(part: nn.Module, split: TensorSplit, n: int) -> list[nn.Module]:
    """Return what each of `n` processes computes of a part, as copies of it; their results add up to that of the part.

    Raises:
        ContractError: `split` does not name linear layers that its units divide.
    """
    copies = [copy.deepcopy(part) for _ in range(n)]
    for process, alone in enumerate(copies):
        for weight in _weights(alone, split):
            given = weight.ordered(n)
            if weight.axis is not None:
                given = given.chunk(n, weight.axis)[process]
            elif weight.once and process:
                given = torch.zeros_like(given)
            weight.put(nn.Parameter(given, weight.parameter.requires_grad))
    return copies


def divided_axes(parts: Mapping[nn.Module, TensorSplit]) -> dict[int, int]:
    """Return the axis along which each weight is divided, by its identity; those that stay whole are left out.

    Raises:
        ContractError: a part's `tensor_split` does not name linear layers that its units divide.
    """
    weights = [weight for part, split in parts.items() for weight in _weights(part, split)]
    return {id(weight.parameter): weight.axis for weight in weights if weight.axis is not None}


def keep_orders(models: Iterable[nn.Module]) -> None:
    """Note the order of rows in weights of `divide`, whose tensors may have been replaced since."""
    for module in _once(models):
        if isinstance(module, StackedLinear) and module.divided_by > 1:
            for parameter in _weights_in(module):
                keep_order(parameter, divided_order(module.rows, module.divided_by))


@dataclass(frozen=True)
class _Weight:
    """A parameter of a divided part."""

    module: nn.Module
    name: str
    axis: int | None
    """The axis along which it is divided; None if every process has all of it."""
    once: bool
    """Whether the results of all processes must have it in them once: a bias, which is added to a sum."""

    @property
    def parameter(self) -> Shaped[Tensor, ...]:
        """What the module has by this name now."""
        return getattr(self.module, self.name)

    def put(self, tensor: Shaped[Tensor, ...]) -> None:
        """Let the module have a tensor by this name, which need not be a parameter."""
        self.module._parameters[self.name] = cast(nn.Parameter, tensor)  # pyright: ignore[reportPrivateUsage]

    def ordered(self, n: int) -> Shaped[Tensor, ...]:
        """Return it with the rows of each of `n` processes together, and let its layer know that it is divided."""
        place, given = self.module, self.parameter.detach()
        if isinstance(place, StackedLinear) and self.axis == 0:
            place.divided_by = n
            given = given[divided_order(place.rows, n).to(given.device)]
        return given

    def local(self) -> Shaped[Tensor, ...]:
        """Return what this process computes with. Every process adds to the gradient of what all have."""
        spread = cast(DTensor, self.parameter)
        found = spread.to_local(grad_placements=[Partial()] if self.axis is None else None)
        return found * 0 if self.once and spread.device_mesh.get_local_rank() else found


class _Divided(ParallelStyle):
    """Divides the linear layers of a part as it says."""

    def __init__(self, split: TensorSplit) -> None:
        self._split = split

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        weights, n = _weights(module, self._split), device_mesh.size()
        for weight in weights:
            placement = Replicate() if weight.axis is None else Shard(weight.axis)
            part = distribute_tensor(weight.ordered(n), device_mesh, [placement], src_data_rank=None)
            weight.put(nn.Parameter(part, weight.parameter.requires_grad))
        module.forward = partial(_divided, module.forward, weights, device_mesh)
        return module


def _weights(part: nn.Module, split: TensorSplit) -> list[_Weight]:
    """Return the parameters of a part. Raises `ContractError` if they cannot be divided as it says."""
    columns, rows = _layers(part, split, split.columns), _layers(part, split, split.rows)
    found: list[_Weight] = []
    for module in part.modules():
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            axis = 0 if module in columns else 1 if module in rows and name == "weight" else None
            found.append(_Weight(module, name, axis, once=module in rows and axis is None))
    return found


def _layers(part: nn.Module, split: TensorSplit, paths: Sequence[str]) -> set[nn.Module]:
    found: set[nn.Module] = set()
    for path in paths:
        layers = [layer for layer in part.get_submodule(path).modules() if isinstance(layer, nn.Linear)]
        for layer in layers:
            stacked = layer.rows if isinstance(layer, StackedLinear) else [layer.out_features]
            sizes = stacked if path in split.columns else [layer.in_features]
            if odd := [size for size in sizes if size % split.units]:
                raise ContractError(
                    f"{_kind(part)}.tensor_split names {path}, whose {odd[0]} features are not a multiple of "
                    f"{split.units} {split.unit}"
                )
        if not layers:
            raise ContractError(f"{_kind(part)}.tensor_split names {path}, which has no linear layer")
        found.update(layers)
    return found


def _divided(
    forward: Callable[..., Any], weights: Sequence[_Weight], mesh: DeviceMesh, *args: Any, **options: Any
) -> Any:
    """Return the sum over processes of `forward(…)`, each with its part of the weights."""

    def enter(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.requires_grad:
            return x
        return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])

    def leave(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return DTensor.from_local(x, mesh, [Partial()], run_check=False).redistribute(mesh, [Replicate()]).to_local()

    with _local(weights):
        found = forward(*tree_map(enter, args), **tree_map(enter, options))
    return tree_map(leave, found)


@contextmanager
def _local(weights: Sequence[_Weight]) -> Generator[None]:
    """Within the block the modules have what this process has of their parameters."""
    before = [weight.parameter for weight in weights]
    try:
        for weight in weights:
            weight.put(weight.local())
        yield
    finally:
        for weight, parameter in zip(weights, before, strict=True):
            weight.put(parameter)


def declared_parts(models: Iterable[nn.Module]) -> Generator[tuple[nn.Module, TensorSplit]]:
    """Yield the parts that say how they are divided, without those that are inside another."""
    inside: set[nn.Module] = set()
    for module in _once(models):  # outer modules come first
        method = getattr(module, "tensor_split", None)
        if module not in inside and callable(method) and isinstance(split := method(), TensorSplit):
            inside.update(module.modules())
            yield module, split


def _undivided(models: Iterable[nn.Module], divided: set[nn.Module]) -> Mapping[str, int]:
    """Return how many matrices the layers of models have that are not divided, by the kind of part they are in."""
    found: Counter[str] = Counter()
    for model in models:
        for part in (part for unit in sharding_units(model) or [model] for part in _parts(unit)):
            modules = [module for module in part.modules() if module not in divided]
            if matrices := sum(weight.ndim > 1 for module in modules for weight in _weights_in(module)):
                found[_kind(model if _is_torchs(part) else part)] += matrices
    return found


def _is_torchs(module: nn.Module) -> bool:
    return provenance.class_of(module).__module__.startswith("torch.")


def _parts(unit: nn.Module) -> list[nn.Module]:
    """Return the modules that a unit of sharding consists of, outside of containers; of one without any, itself."""
    found: list[nn.Module] = []
    for child in unit.children():
        contains = isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential)
        found += _parts(child) if contains else [child]
    return found or [unit]


def _kind(part: nn.Module) -> str:
    """Return what a part is, and the distribution it is from."""
    cls = provenance.class_of(part)
    registered = provenance.parts_of([], cls)
    return f"{cls.__name__} of {registered[0]['distribution'] if registered else cls.__module__.partition('.')[0]}"


def _weights_in(module: nn.Module) -> list[nn.Parameter]:
    """Return a module's own parameters."""
    return [parameter for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False)]


def _once(models: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for model in models for module in model.modules()}.values())
