"""`axon plan`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from axon_core.cli.output import echo, json_option, print_json
from axon_core.training.build import build_bare_trainer
from axon_core.training.capacity.accelerators import ACCELERATORS, find_accelerator
from axon_core.training.capacity.plan import CapacityPlan, layout_of
from axon_core.training.capacity.report import report_lines
from axon_core.training.recipe import Recipe

_RATE = click.FloatRange(min=0, min_open=True)


@click.command("plan")
@click.argument("recipe")
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change a field of the recipe; repeatable.")
@click.option(
    "--world", type=click.IntRange(min=1), default=1, show_default=True, help="How many ranks train together."
)
@click.option(
    "--strategy", type=click.Choice(["ddp", "fsdp"]), help="By default the recipe's, trainer.parallel.strategy."
)
@click.option("--replicate", type=click.IntRange(min=1), help="With fsdp: how many copies of the weights there are.")
@click.option("--tensor", type=click.IntRange(min=1), help="With fsdp: how many ranks compute each example together.")
@click.option("--precision", help="fp32 or bf16; by default the recipe's, where auto is bf16 unless for a cpu.")
@click.option("--device", help=f"What a rank computes on: {', '.join(ACCELERATORS)}.")
@click.option(
    "--ranks-per-node", type=click.IntRange(min=1), default=8, show_default=True, help="Ranks, or devices, in a node."
)
@click.option("--flops", type=_RATE, metavar="FLOP/S", help="Peak of the device in this precision, dense.")
@click.option("--memory", type=_RATE, metavar="BYTES", help="Memory of the device.")
@click.option("--bandwidth", type=_RATE, metavar="BYTES/S", help="What a device sends within its node, one way.")
@click.option("--inter-bandwidth", type=_RATE, metavar="BYTES/S", help="What a device sends to other nodes, one way.")
@click.option(
    "--utilisation",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.4,
    show_default=True,
    help="The fraction of the peak that matrix products are assumed to reach.",
)
@json_option
def command(
    recipe: str,
    overrides: Sequence[str],
    world: int,
    strategy: str | None,
    replicate: int | None,
    tensor: int | None,
    precision: str | None,
    device: str | None,
    ranks_per_node: int,
    flops: float | None,
    memory: float | None,
    bandwidth: float | None,
    inter_bandwidth: float | None,
    utilisation: float,
    as_json: bool,
) -> None:
    """Say what training from RECIPE would need on many devices: memory, traffic and time of a rank.

    Nothing is trained, and no weights are made: the first step's data are read, and its operations are counted on
    tensors without numbers. Times rest on the stated peak rates and on an assumed utilisation.
    """
    accelerator = find_accelerator(
        device, flops=flops, memory=memory, bandwidth=bandwidth, inter_bandwidth=inter_bandwidth
    )
    given = {
        "parallel.strategy": strategy,
        "parallel.replicate": replicate,
        "parallel.tensor": tensor,
        "precision": precision,
        "device": "auto",
    }
    changes = [*overrides, *(f"trainer.{name}={value}" for name, value in given.items() if value is not None)]
    plan = Recipe.load(recipe, changes)
    if plan.trainer.options.get("precision") == "auto" and device != "cpu":  # of this machine it would be
        plan = Recipe.load(recipe, [*changes, "trainer.precision=bf16"])
    trainer = build_bare_trainer(plan)
    layout = layout_of(trainer.config, world, ranks_per_node)
    found = CapacityPlan.of(plan.name, trainer, layout, accelerator, utilisation)
    if as_json:
        print_json(found.to_json())
    else:
        echo("\n".join(report_lines(found)))
