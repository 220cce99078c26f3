"""How the loss and its gradients are computed by many processes: with DDP, or with FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from axon_core.processes import agree, as_workers, parted, world
from axon_core.randomness import forked
from axon_core.training.parallel.config import Parallel
from axon_core.training.parallel.mesh import make_mesh
from axon_core.training.parallel.strategy import Strategy
from axon_core.training.parallel.tensor import divide, keep_orders
from axon_core.training.parallel.units import sharding_units
from axon_core.training.trainer import Trainer

__all__ = ["divided"]

T = TypeVar("T")

_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}


def divided(trainer: Trainer) -> Strategy:
    """Return the strategy by which several processes train, as the trainer's config names it."""
    return (_DDP if trainer.config.parallel.strategy == "ddp" else _FSDP)(trainer)


class _Root(nn.Module):
    """Models under one root, whose forward pass is any function that uses them."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


class _DDP(Strategy):
    """Every process holds all weights; the gradients are summed while the backward pass runs."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.place()
        _take_first(trainer.models.values())
        self._models = _Root({role: trainer.models[role] for role in trainer.trainable})
        self._device = trainer.config.device
        self._root: DistributedDataParallel

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return self._root(self._loss, data)

    def accumulating(self) -> AbstractContextManager[object]:
        return self._root.no_sync()

    def begin(self, data: dict[str, Tensor]) -> None:
        if hasattr(self, "_root") and self._root.process_group is dist.group.WORLD:  # else that has ended
            return
        with forked(self._device):
            used = _leaves(self._trainer.loss(data).values())  # compiling it for one example would take a minute
        mine = any(parameter.requires_grad and id(parameter) not in used for parameter in self._models.parameters())
        self._root = DistributedDataParallel(
            self._models,
            init_sync=False,  # they are those of the first process
            forward_sync_buffers=False,
            find_unused_parameters=bool(agree(mine)),  # to look each time costs time
            gradient_as_bucket_view=True,
        )
        self._root.register_comm_hook(None, _summed)


def _summed(_: None, bucket: GradBucket) -> Future[Tensor]:
    """Sum a bucket of gradients over all processes; DDP by itself averages, which takes another pass."""
    summing = cast(dist.Work, dist.all_reduce(bucket.buffer(), async_op=True))
    return cast("Future[list[Tensor]]", summing.get_future()).then(_first)


def _first(done: Future[list[Tensor]]) -> Tensor:
    return done.value()[0]


_summed.__annotations__.clear()  # DDP refuses those that are still text, as in this file


class _FSDP(Strategy):
    """Weights, gradients and optimiser state are sharded; a unit's weights are whole only while it computes.

    The trained roles have one root, because they may share parameters, and so has each frozen role, which a trainer may
    drop when it is no longer needed.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._depth, self._group = 0, dist.group.WORLD
        # Sharding moves them to the device unit by unit, which therefore need not hold a whole model.
        for model in trainer.models.values():
            model.to(dtype=trainer.config.dtype)
        _take_first(trainer.models.values())
        parallel = trainer.config.parallel
        mesh = self._mesh()
        self._roots: dict[str, FSDPModule] = {}
        self._units: dict[str, list[FSDPModule]] = {}
        trained = {role: trainer.models[role] for role in trainer.trainable}
        frozen = {role: {role: model} for role, model in trainer.models.items() if role not in trained}
        for name, models in {"": trained, **frozen}.items():
            root = _Root(models)
            units = [unit for model in models.values() for unit in sharding_units(model)]
            self._units[name] = [_sharded(unit, mesh, parallel, inputs=True) for unit in _once(units)]
            self._roots[name] = _sharded(root, mesh, parallel, inputs=False)
        keep_orders(trainer.models.values())

    def _mesh(self) -> DeviceMesh:
        """Divide the models among the processes of each worker, and return the mesh of the workers."""
        parallel, kind = self._trainer.config.parallel, torch.device(self._trainer.config.device).type
        sizes = parallel.sizes(world())
        mesh = make_mesh(kind, sizes, parallel.timeout)
        if parallel.tensor > 1:
            divide(list(self._trainer.models.values()), mesh["tensor"])
        return mesh["replicate", "shard"] if sizes[0] > 1 else mesh["shard"]

    def place(self) -> None:
        """Leave the models where they are sharded. Raises `UsageError` if the processes have parted since."""
        if self._group is not dist.group.WORLD:
            raise parted()

    def as_workers(self) -> AbstractContextManager[object]:
        return as_workers(self._trainer.config.parallel.tensor)

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return self._within(lambda: self._loss(data))

    def whole(self, do: Callable[[], T]) -> T:
        if self._depth:
            return do()
        self._depth += 1
        roots = self._present()
        units = [unit for name in roots for unit in self._units[name]]

        def inside() -> T:
            for unit in units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
            return do()

        try:
            return self._within(inside)
        finally:
            for module in [*units, *(self._roots[name] for name in roots)]:
                module.reshard()
            for unit in units:
                unit.set_reshard_after_forward(True, recurse=False)
            self._depth -= 1

    def _within(self, do: Callable[[], T]) -> T:
        """Return `do()`, run as the forward pass of all roots, one inside the other."""
        for name in self._present():
            do = _Within(self._roots[name], do)
        return do()

    def _present(self) -> list[str]:
        """Return the names of the roots that still are, and forget those of roles that the trainer dropped."""
        for name in [name for name in self._roots if name and name not in self._trainer.models]:
            del self._roots[name], self._units[name]
        return list(self._roots)


class _Within:
    """A function that runs as a root's forward pass."""

    def __init__(self, root: FSDPModule, do: Callable[[], Any]) -> None:
        self._root, self._do = cast(Callable[..., Any], root), do

    def __call__(self) -> Any:
        return self._root(self._do)


def _leaves(tensors: Iterable[Tensor]) -> set[int]:
    """Return the identities of the parameters that tensors are computed from."""
    found, seen = set[int](), set[Any]()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return found


def _once(units: Sequence[nn.Module]) -> list[nn.Module]:
    """Return modules without those that stand twice, or inside another."""
    inner = {id(part) for unit in units for part in unit.modules() if part is not unit}
    return list({id(unit): unit for unit in units if id(unit) not in inner}.values())


def _sharded(module: nn.Module, mesh: Any, parallel: Parallel, *, inputs: bool) -> FSDPModule:
    """Shard a module's parameters that are not yet; gradients are summed, not averaged: counts are of all processes."""
    policy = MixedPrecisionPolicy(
        param_dtype=_DTYPES[parallel.param_dtype],
        reduce_dtype=_DTYPES[parallel.reduce_dtype],
        cast_forward_inputs=inputs,
    )
    offloads = parallel.cpu_offload and mesh.device_type != "cpu"  # where they are in its memory already
    offload = CPUOffloadPolicy() if offloads else OffloadPolicy()
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    return sharded


@torch.no_grad()
def _take_first(models: Iterable[nn.Module]) -> None:
    """Give the models the numbers that they have in the first process, bit for bit."""
    for tensor in {id(t): t for model in models for t in (*model.parameters(), *model.buffers())}.values():
        numbers = tensor.detach().flatten()
        if numbers.numel():
            dist.broadcast(numbers.view(torch.uint8), 0)
            tensor.copy_(numbers.view_as(tensor))
