"""A capacity plan as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from axon_core.training.capacity.plan import CapacityPlan
from axon_core.training.capacity.remedies import USABLE
from axon_core.training.planning import in_bytes

__all__ = ["report_lines"]

_WIDTH = 15


def report_lines(plan: CapacityPlan) -> Iterator[str]:
    """Yield the lines of a plan; what is assumed, and where figures are from, is said beside them."""
    layout, device = plan.layout, plan.device
    sharded = f", weights sharded over {layout.shard:,}" if layout.strategy == "fsdp" else ""
    copies = f", {layout.replicate:,} copies" if layout.replicate > 1 else ""
    divided = f", layers divided among {layout.tensor:,}" if layout.tensor > 1 else ""
    yield f"{plan.name} on {plan.world:,} × {device.name}: {layout.strategy}{sharded}{divided}{copies}"
    for role, model in plan.models.items():
        yield f"model {role}: {model.described}"
    if plan.examples is not None:
        units = "" if plan.units is None or plan.unit == "examples" else f", {plan.units:,.0f} {plan.unit}"
        cut = f", in {layout.micro_batches:,} micro-batches" if layout.micro_batches > 1 else ""
        yield f"a step: {plan.examples:,} examples{units}; a rank has at most {plan.share:,}{cut}"
    for section in (_memory, _traffic, _time):
        yield ""
        yield from section(plan)
    yield ""
    yield f"device: {device.source}"
    if plan.unknown:
        yield f"activations, operations and time are not known: a step needs the models' numbers ({plan.unknown})"
    yield from (f"warning: {warning}" for warning in plan.warnings)
    yield _verdict(plan)


def _row(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<{_WIDTH}}{value:>10}{f'   {remark}' if remark else ''}"


def _memory(plan: CapacityPlan) -> Iterator[str]:
    memory = plan.memory
    yield "memory of a rank"
    for name in ("weights", "gradients", "optimizer", "average"):
        yield _row(name, in_bytes(getattr(memory, name)))
    if plan.activations is not None and memory.activations is not None:
        other = "whole" if plan.layout.activation_checkpointing else "checkpointed"
        how = "without" if other == "whole" else "with"
        remark = f"{in_bytes(plan.activations[other])} {how} activation checkpointing"
        yield _row("activations", in_bytes(memory.activations), remark)
    if plan.layout.strategy == "fsdp":
        yield _row("temporary", in_bytes(memory.temporary), "weights gathered whole, and gradients of one unit or more")
    yield _row("sum", in_bytes(memory.total), f"of {in_bytes(plan.device.memory)}, {USABLE:.0%} of them usable")
    if memory.host:
        yield _row("on the host", in_bytes(memory.host), "weights, gradients and the optimiser's state")


def _traffic(plan: CapacityPlan) -> Iterator[str]:
    yield "a rank sends, in a step"
    traffic = plan.traffic
    for name, size, what in (
        ("all-gather", traffic.all_gather, "weights"),
        ("reduce-scatter", traffic.reduce_scatter, "gradients, over the ranks of a copy"),
        ("all-reduce", traffic.all_reduce, "gradients, over copies"),
        ("activations", traffic.activations, "results of divided layers, and their inputs' gradients"),
        ("handed round", traffic.handed_round, "updates of matrices that one rank makes for others"),
    ):
        if size:
            yield _row(name, in_bytes(size), what)
    yield _row("sum", in_bytes(traffic.total))


def _time(plan: CapacityPlan) -> Iterator[str]:
    seconds, device = plan.seconds, plan.device
    yield "expected time of a step"
    if plan.flops is not None:
        yield _row("operations", f"{plan.flops:.2e}", "FLOP of a rank: matrix products, convolutions, attention")
    if seconds is None:
        yield "  not known: give the device's --flops, --bandwidth and --inter-bandwidth"
        return
    peak = device.flops(plan.precision) or 0.0
    assumed = f"at {plan.utilisation:.0%} of {peak / 1e12:,.4g} TFLOP/s ({plan.precision}, dense): an assumption"
    yield _row("passes", _seconds(seconds.compute), assumed)
    yield _row("communication", _seconds(seconds.communication), "at full bandwidth")
    yield _row("update", _seconds(seconds.update))
    low, high = seconds.overlapped, seconds.exposed
    yield _row("sum", _seconds(low), f"if communication overlaps with the passes; {_seconds(high)} if none does")
    if plan.units is not None:
        yield _row(
            "rate", f"{plan.units / low:,.0f}", f"{plan.unit} per second; {plan.units / high:,.0f} without overlap"
        )


def _verdict(plan: CapacityPlan) -> str:
    known = "" if plan.memory.activations is not None else ", as far as is known"
    if plan.fits:
        return f"It fits{known}."
    return f"It does not fit. To make it fit: {'; or '.join(plan.remedies)}."


def _seconds(number: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number * 1e6:,.3g} µs"
