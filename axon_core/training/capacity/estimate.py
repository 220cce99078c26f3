"""Memory, traffic and time of one rank: arithmetic on what a training demands, for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from axon_core import config
from axon_core.training.capacity.accelerators import Accelerator
from axon_core.training.capacity.tracing import TracedWork
from axon_core.training.planning import MemoryPlan

__all__ = [
    "Demand",
    "Estimate",
    "Group",
    "RankLayout",
    "RankMemory",
    "Seconds",
    "Traffic",
    "estimate",
    "ring",
    "share_of",
]


@dataclass(frozen=True)
class RankLayout:
    """How ranks share a training.

    Attributes:
        strategy: `ddp`, every rank has everything; or `fsdp`, `shard` ranks share the weights and what belongs to them.
        replicate: how many groups of ranks have everything among them.
        shard: how many workers share one copy; 1 with `ddp`.
        tensor: how many ranks are one worker, which compute each example together; 1 with `ddp`.
        activation_checkpointing: whether each unit is run again in the backward pass, instead of kept.
        cpu_offload: whether the shards of `fsdp` lie in the memory of the host.
        micro_batches: into how many micro-batches an update is cut.
        ranks_per_node: how many ranks are in a node.
    """

    strategy: Literal["ddp", "fsdp"]
    replicate: int
    shard: int = 1
    tensor: int = 1
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    micro_batches: int = 1
    ranks_per_node: int = 8

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.workers * self.tensor

    @property
    def workers(self) -> int:
        """How many of them, or groups of them, have different examples."""
        return self.replicate * self.shard


@dataclass(frozen=True)
class Group:
    """Weights that are gathered together: those of a unit, or those of a model that are in no unit.

    Attributes:
        weights: their bytes as they are sent, whole; of layers that are divided, a rank's part.
        gradients: the bytes of their gradients as they are sent, whole; of layers that are divided, a rank's part.
        unit: whether they are a unit's, which are gathered for a while; others are gathered once and stay whole.
        trained: whether a backward pass goes through them, for which units are gathered again.
    """

    weights: int
    gradients: int
    unit: bool
    trained: bool


@dataclass(frozen=True)
class Demand:
    """What a training demands, however it is shared.

    Attributes:
        memory: returns the memory of weights, gradients, optimiser and average of a rank, by how many workers share a
            copy.
        groups: what is gathered together with `fsdp`, in order.
        work: what a rank computed and kept when a step was traced; None if it could not be.
        precision: of matrix products: `fp32`, `bf16` or `fp64`.
        owned: bytes of the matrices whose updates are made whole by one rank and handed round (`training.owners`); of
            layers that are divided, a rank's part.
    """

    memory: Callable[[int], MemoryPlan]
    groups: Sequence[Group]
    work: TracedWork | None
    precision: str
    owned: int = 0


class RankMemory(MemoryPlan):
    """Bytes on the device of the rank that holds most."""

    activations: int | None
    """What the forward pass keeps for the backward pass; None if it is not known."""
    temporary: int
    """What is whole for a while with `fsdp`: gathered weights, and gradients that are not summed yet."""
    host: int = 0
    """Bytes in the memory of the host instead, with `cpu_offload`."""

    @property
    def total(self) -> int:
        """The sum of what is on the device."""
        return super().total + (self.activations or 0) + self.temporary


class Traffic(config.Config):
    """Bytes that a rank sends in a step, by operation, where messages go round a ring."""

    all_gather: float = 0
    """Weights of other ranks."""
    reduce_scatter: float = 0
    """Gradients, summed over the ranks that share a copy."""
    all_reduce: float = 0
    """Gradients, summed over copies."""
    activations: float = 0
    """Results of divided layers, and the gradients of their inputs, summed over the ranks of a worker."""
    handed_round: float = 0
    """Updates of matrices that one rank makes whole, and with `fsdp` what it makes them of."""

    @property
    def total(self) -> float:
        """Their sum."""
        return self.all_gather + self.reduce_scatter + self.all_reduce + self.activations + self.handed_round


class Seconds(config.Config):
    """Expected time of a step."""

    compute: float
    """Of the forward and backward passes."""
    communication: float
    """Of the traffic, at full bandwidth."""
    update: float
    """Of the optimiser: its matrix products, and reading and writing its state."""

    @property
    def overlapped(self) -> float:
        """If all communication happens during the passes, as far as it fits."""
        return max(self.compute, self.communication) + self.update

    @property
    def exposed(self) -> float:
        """If none does."""
        return self.compute + self.communication + self.update


@dataclass(frozen=True)
class Estimate:
    """What a layout means for the rank that has most to do.

    Attributes:
        share: its examples of a step; None if they are not known.
        memory: what it holds.
        traffic: what it sends in a step.
        flops: its floating-point operations in a step; None if they are not known.
        seconds: expected time of a step; None if operations or rates are not known.
    """

    share: int | None
    memory: RankMemory
    traffic: Traffic
    flops: int | None
    seconds: Seconds | None


def estimate(demand: Demand, layout: RankLayout, device: Accelerator, utilisation: float) -> Estimate:
    """Return memory, traffic and time of the rank that has most to do.

    `utilisation` is the fraction of the device's peak that matrix products reach: an assumption.
    """
    work = demand.work
    share = None if work is None else share_of(work.examples, layout.workers)
    flops = None if work is None or share is None else _flops(work, layout, share)
    traffic = _traffic(demand, layout, share)
    return Estimate(
        share=share,
        memory=_memory(demand, layout, share),
        traffic=traffic,
        flops=flops,
        seconds=_seconds(demand, layout, device, utilisation, flops, traffic),
    )


def share_of(examples: int, ranks: int) -> int:
    """Return the most examples that one of `ranks` has of a step, at least one: ⌈examples / ranks⌉."""
    return -(-examples // min(ranks, examples))


def ring(size: float, ranks: int) -> float:
    """Return the bytes that each of `ranks` sends to gather `size` bytes, or to scatter their sum: (r − 1) / r · size.

    >>> ring(800, 8), ring(800, 1)
    (700.0, 0.0)
    """
    return (ranks - 1) / ranks * size


def _memory(demand: Demand, layout: RankLayout, share: int | None) -> RankMemory:
    held = demand.memory(layout.shard)
    on_host = layout.cpu_offload and layout.strategy == "fsdp"
    return RankMemory(
        **(dict.fromkeys(type(held).model_fields, 0) if on_host else held.model_dump()),
        activations=_activations(demand.work, layout, share),
        temporary=_temporary(demand.groups, layout),
        host=held.total if on_host else 0,
    )


def _activations(work: TracedWork | None, layout: RankLayout, share: int | None) -> int | None:
    """Scale what was traced to the examples of this layout's micro-batch."""
    if work is None or share is None:
        return None
    kept = work.checkpointed if layout.activation_checkpointing else work.activations
    return round(kept * share_of(share, layout.micro_batches) / share_of(work.share, work.micro_batches))


def _temporary(groups: Sequence[Group], layout: RankLayout) -> int:
    """Return the bytes of what is whole for a while with `fsdp`; with `ddp`, gradients are summed where they are.

    Those are the weights outside of units; of the units, the two consecutive ones that are largest, because the next
    one is gathered while one is computed; and the gradients of the largest group.
    """
    if layout.strategy == "ddp":
        return 0
    gradients = [group.gradients for group in groups]
    roots = sum(group.weights for group in groups if not group.unit)
    units = [group.weights for group in groups if group.unit]
    return roots + max([sum(pair) for pair in pairwise(units)] or units or [0]) + max(gradients, default=0)


def _traffic(demand: Demand, layout: RankLayout, share: int | None) -> Traffic:
    """Return what a rank sends.

    With `ddp` those are gradients, once in an update; with `fsdp`, for each micro-batch, weights, twice if they are
    trained units', and gradients.
    """
    updates = demand.work.updates if demand.work else 1
    owned, gradients = demand.owned, updates * sum(group.gradients for group in demand.groups)
    if layout.strategy == "ddp":
        return Traffic(all_reduce=2 * ring(gradients, layout.world), handed_round=updates * ring(owned, layout.world))
    passes = updates * layout.micro_batches
    gathered = sum(group.weights * (2 if group.unit and group.trained else 1) for group in demand.groups)
    return Traffic(
        all_gather=ring(passes * gathered, layout.shard),
        reduce_scatter=ring(layout.micro_batches * gradients, layout.shard),
        all_reduce=2 * ring(layout.micro_batches * gradients / layout.shard, layout.replicate),
        activations=2 * ring(_summed(demand.work, layout, share), layout.tensor),
        handed_round=2 * updates * ring(owned / layout.shard, layout.shard * layout.tensor),
    )


def _summed(work: TracedWork | None, layout: RankLayout, share: int | None) -> float:
    """Return the bytes of activations, and of their gradients, that the ranks of a worker sum in a step."""
    if work is None or share is None:
        return 0.0
    results = work.results * (2 if layout.activation_checkpointing else 1)
    return (results + work.inputs) * work.repeats * share / work.share


def _flops(work: TracedWork, layout: RankLayout, share: int) -> int:
    again = work.recomputed if layout.activation_checkpointing else 0
    passes = (work.forward + work.backward + again) * work.repeats
    return round(passes * share / work.share) + _update_flops(work, layout)


def _update_flops(work: TracedWork, layout: RankLayout) -> int:
    """Return the operations of a rank's optimisers in a step; ranks divide them, with `fsdp` those of one copy."""
    return round(
        work.updates * work.update / (layout.world if layout.strategy == "ddp" else layout.shard * layout.tensor)
    )


def _seconds(
    demand: Demand, layout: RankLayout, device: Accelerator, utilisation: float, flops: int | None, traffic: Traffic
) -> Seconds | None:
    peak, work = device.flops(demand.precision), demand.work
    if flops is None or peak is None or work is None:
        return None
    near, far = device.bandwidth, device.inter_bandwidth
    within = near if layout.shard * layout.tensor <= layout.ranks_per_node else far
    beside = near if layout.tensor <= layout.ranks_per_node else far
    across = near if layout.world <= layout.ranks_per_node else far
    times = [
        (traffic.all_gather + traffic.reduce_scatter, within),
        (traffic.all_reduce, across),
        (traffic.activations, beside),
        (traffic.handed_round, across if layout.strategy == "ddp" else within),
    ]
    if any(size and rate is None for size, rate in times):
        return None
    held = demand.memory(layout.shard)
    moved = 2 * held.weights + held.gradients + 2 * held.optimizer
    of_update = _update_flops(work, layout)
    moving = work.updates * moved / device.memory_bandwidth if device.memory_bandwidth else 0.0
    return Seconds(
        compute=(flops - of_update) / (peak * utilisation),
        communication=sum(size / rate for size, rate in times if rate),
        update=of_update / (peak * utilisation) + moving,
    )
