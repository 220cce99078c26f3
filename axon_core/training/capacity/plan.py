"""What a recipe would need on a number of devices, whether it fits, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any, Self

from torch import nn

from axon_core import config
from axon_core.errors import first_line
from axon_core.training.capacity.accelerators import Accelerator
from axon_core.training.capacity.estimate import (
    Demand,
    Group,
    RankLayout,
    RankMemory,
    Seconds,
    Traffic,
    estimate,
)
from axon_core.training.capacity.remedies import fits, remedies, warnings
from axon_core.training.capacity.stand_ins import local_shards
from axon_core.training.capacity.tracing import trace
from axon_core.training.parallel.tensor import divided_axes, divided_parts
from axon_core.training.parallel.units import sharding_units
from axon_core.training.planning import MemoryPlan, ModelPlan, memory_of, models_of, owned_bytes
from axon_core.training.trainer import Trainer

__all__ = ["CapacityPlan", "demand_of", "layout_of"]

_SIZES = {None: None, "fp32": 4, "bf16": 2}


class CapacityPlan(config.Config):
    """What a training would need of each of many ranks. Times rest on assumptions, which are among its fields."""

    name: str
    """The recipe's name."""
    models: dict[str, ModelPlan]
    """The models by role."""
    device: Accelerator
    """What each rank computes on."""
    layout: RankLayout
    """How the ranks share the training."""
    world: int
    """How many ranks there are."""
    precision: str
    """Of matrix products."""
    examples: int | None
    """Examples of the first step, over all ranks; None if they are not known."""
    share: int | None
    """The most that a rank has of them."""
    unit: str
    """What the trainer counts."""
    units: float | None
    """How many of that unit the first step learns from, over all ranks; None if it is not known."""
    memory: RankMemory
    """Bytes of the rank that holds most."""
    activations: dict[str, int] | None
    """Bytes kept for the backward pass, `whole` and `checkpointed`; None if they are not known."""
    traffic: Traffic
    """What a rank sends in a step."""
    flops: int | None
    """Floating-point operations of a rank in a step; None if they are not known."""
    utilisation: float
    """The fraction of the device's peak that matrix products are assumed to reach."""
    seconds: Seconds | None
    """Expected time of a step; None if operations or rates are not known."""
    unknown: str = ""
    """Why activations and operations are not known, if they are not."""
    fits: bool
    """Whether what is known fits in the usable part of the device's memory."""
    remedies: tuple[str, ...] = ()
    """What would make it fit, if it does not: each line by itself."""
    warnings: tuple[str, ...] = ()
    """What else would keep it from running, or from running well."""

    @classmethod
    def of(cls, name: str, trainer: Trainer, layout: RankLayout, device: Accelerator, utilisation: float) -> Self:
        """Return the plan of a trainer, whose models may lack memory (`weightless`)."""
        demand, unknown = demand_of(trainer, layout.workers)
        work, found = demand.work, estimate(demand, layout, device, utilisation)
        fit = fits(found.memory, device)
        both = [
            estimate(demand, replace(layout, activation_checkpointing=on), device, utilisation).memory.activations
            for on in (False, True)
        ]
        return cls(
            name=name,
            models=models_of(trainer),
            device=device,
            layout=layout,
            world=layout.world,
            precision=demand.precision,
            examples=work and work.examples,
            share=found.share,
            unit=trainer.unit,
            units=work and work.units * work.examples / work.share,
            memory=found.memory,
            activations=None if both[0] is None else {"whole": both[0], "checkpointed": both[1] or 0},
            traffic=found.traffic,
            flops=found.flops,
            utilisation=utilisation,
            seconds=found.seconds,
            unknown=unknown,
            fits=fit,
            remedies=() if fit else tuple(remedies(demand, layout, device)),
            warnings=tuple(warnings(demand, layout, found)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON has them, with the sums."""
        found = self.model_dump(mode="json")
        found["layout"] = asdict(self.layout)
        found["memory"]["total"], found["traffic"]["total"] = self.memory.total, self.traffic.total
        if self.seconds is not None:
            found["seconds"] |= {"overlapped": self.seconds.overlapped, "exposed": self.seconds.exposed}
        return found


def layout_of(settings: Trainer.Config, world: int, ranks_per_node: int) -> RankLayout:
    """Return how so many ranks share a training with these settings.

    Raises:
        UsageError: `replicate` times `shard` times `tensor` are not `world` ranks.
    """
    parallel = settings.parallel
    replicate, shard, tensor = parallel.sizes(world)
    return RankLayout(
        strategy=parallel.strategy,
        replicate=replicate,
        shard=shard,
        tensor=tensor,
        activation_checkpointing=parallel.activation_checkpointing,
        cpu_offload=parallel.cpu_offload,
        micro_batches=settings.micro_batches,
        ranks_per_node=ranks_per_node,
    )


def demand_of(trainer: Trainer, workers: int) -> tuple[Demand, str]:
    """Return what a training demands, of which a step is traced for so many workers; and if it could not be, why.

    Raises:
        UsageError: `tensor` does not divide the units of a part.
        ContractError: a part does not say rightly how it is divided.
    """
    settings = trainer.config
    tensor = settings.parallel.tensor
    parts = divided_parts(list(trainer.models.values()), tensor) if tensor > 1 else {}
    axes = divided_axes(parts)
    for model in trainer.models.values():
        model.to(dtype=settings.dtype)

    @cache
    def memory(shard: int) -> MemoryPlan:
        with local_shards(trainer, shard, axes, tensor):
            return memory_of(trainer)

    units = [unit for role in trainer.trainable for unit in sharding_units(trainer.models[role])]
    groups, owned = list(_groups(trainer, axes)), owned_bytes(trainer, axes, tensor)
    memory(1)  # before a step is traced, after which a trainer may have dropped a model
    work, unknown = None, ""
    try:
        work = trace(trainer, units, workers, parts=list(parts), among=tensor)
    except Exception as error:  # whatever a trainer does with tensors that have no numbers
        unknown = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
    precision = "bf16" if settings.parallel.param_dtype == "bf16" else settings.precision
    return Demand(memory, groups, work, precision, owned), unknown


def _groups(trainer: Trainer, axes: Mapping[int, int]) -> Iterator[Group]:
    """Yield what is gathered together: each role's units, then the rest of it."""
    parallel, taken = trainer.config.parallel, set[int]()
    sent = _SIZES[parallel.param_dtype]
    summed = _SIZES[parallel.reduce_dtype] or sent

    def numbers(parameter: nn.Parameter) -> int:
        return parameter.numel() // (parallel.tensor if id(parameter) in axes else 1)

    for role in sorted(trainer.models, key=lambda role: role not in trainer.trainable):
        model, trained = trainer.models[role], role in trainer.trainable
        for module in (*sharding_units(model), model):
            own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
            taken.update(map(id, own))
            learning = [parameter for parameter in own if trained and parameter.requires_grad]
            yield Group(
                weights=sum(numbers(parameter) * (sent or parameter.itemsize) for parameter in own),
                gradients=sum(numbers(parameter) * (summed or parameter.itemsize) for parameter in learning),
                unit=module is not model,
                trained=trained,
            )
