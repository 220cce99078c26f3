"""Whether a training fits in the memory of its devices, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from axon_core.training.capacity.accelerators import Accelerator
from axon_core.training.capacity.estimate import Demand, Estimate, RankLayout, RankMemory, estimate, share_of
from axon_core.training.planning import in_bytes

__all__ = ["USABLE", "fits", "remedies", "warnings"]

USABLE = 0.9
"""The part of a device's memory that a plan may fill: libraries, fragments and temporary results take the rest."""

_MOST_RANKS = 1 << 16

Fits = Callable[[RankLayout], bool]
Change = tuple[str, RankLayout] | None


def fits(memory: RankMemory, device: Accelerator) -> bool:
    """Return whether a rank's memory, as far as it is known, fits in the usable part of its device's."""
    return memory.total <= USABLE * device.memory


def remedies(demand: Demand, layout: RankLayout, device: Accelerator) -> Iterator[str]:
    """Yield changes after which a training fits: those that suffice alone, or else the first ones that do together.

    They are, in this order: sharding, activation checkpointing, more micro-batches, offloading, more ranks.
    """

    def fit(changed: RankLayout) -> bool:
        return fits(estimate(demand, changed, device, 1.0).memory, device)

    found = [change for kind in _KINDS if (change := kind(demand, layout, fit))]
    if alone := [said for said, changed in found if fit(changed)]:
        yield from alone
        return
    together: list[str] = []
    for kind in _KINDS:
        if change := kind(demand, layout, fit):
            said, layout = change
            together.append(said)
            if fit(layout):
                yield " and ".join(together)
                return
    yield "no setting is enough: take a smaller model, shorter examples, or devices with more memory"


def _shard(demand: Demand, layout: RankLayout, fit: Fits) -> Change:
    if layout.shard == layout.workers:
        return None
    setting = "strategy=fsdp" if layout.strategy == "ddp" else "replicate=1"
    return f"trainer.parallel.{setting}", replace(layout, strategy="fsdp", replicate=1, shard=layout.workers)


def _checkpoint(demand: Demand, layout: RankLayout, fit: Fits) -> Change:
    work = demand.work
    if layout.activation_checkpointing or work is None or work.checkpointed >= work.activations:
        return None
    return "trainer.parallel.activation_checkpointing=true", replace(layout, activation_checkpointing=True)


def _cut(demand: Demand, layout: RankLayout, fit: Fits) -> Change:
    if demand.work is None:
        return None
    share, changed = share_of(demand.work.examples, layout.workers), layout
    while changed.micro_batches < share and not fit(changed):
        changed = replace(changed, micro_batches=min(share, 2 * changed.micro_batches))
    before, after = (share_of(share, cut.micro_batches) for cut in (layout, changed))
    return None if after == before else (f"trainer.micro_batches={changed.micro_batches}", changed)


def _offload(demand: Demand, layout: RankLayout, fit: Fits) -> Change:
    if layout.cpu_offload or layout.strategy == "ddp":
        return None
    host = demand.memory(layout.shard).total * min(layout.world, layout.ranks_per_node)
    return f"trainer.parallel.cpu_offload=true (with {in_bytes(host)} in each node)", replace(layout, cpu_offload=True)


def _add_ranks(demand: Demand, layout: RankLayout, fit: Fits) -> Change:
    changed = layout
    while changed.world < _MOST_RANKS and (changed is layout or not fit(changed)):
        changed = replace(layout, strategy="fsdp", replicate=1, shard=2 * changed.workers)
    how = "" if layout.strategy == "fsdp" and layout.replicate == 1 else " with trainer.parallel.strategy=fsdp"
    return f"{changed.world:,} ranks{how}", changed


_KINDS = (_shard, _checkpoint, _cut, _offload, _add_ranks)


def warnings(demand: Demand, layout: RankLayout, found: Estimate) -> Iterator[str]:
    """Yield what else would keep a training from running, or from running well."""
    if demand.work is not None and demand.work.examples < layout.workers:
        what = "ranks" if layout.tensor == 1 else f"groups of {layout.tensor:,} ranks"
        yield (
            f"a step has {demand.work.examples:,} examples, fewer than the {layout.workers:,} {what}: raise "
            "trainer.batch_size, or use fewer ranks"
        )
    if found.seconds is not None and layout.cpu_offload and layout.strategy == "fsdp":
        yield "copies between devices and their hosts, and updates on the hosts, take time that is not counted"
    if found.seconds is not None and found.seconds.communication > found.seconds.compute:
        yield (
            "communication takes longer than the passes: give each rank more examples, use fewer ranks, or shard over "
            "the ranks of one node and replicate over nodes"
        )
