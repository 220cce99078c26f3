"""`axon evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from axon_core.cli.output import json_option, print_json
from axon_core.cli.train import described
from axon_core.errors import CheckpointError
from axon_core.loop import evaluate
from axon_core.run import RunFolder
from axon_core.state import State


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--from", "checkpoint", metavar="NAME", help="The checkpoint, step-100 or previous; by default the latest."
)
@json_option
def command(run: Path, checkpoint: str | None, as_json: bool) -> None:
    """Measure the model in the folder RUN over the whole held-out part of its data."""
    folder = RunFolder.open(run)
    found = folder.checkpoints.find(checkpoint)
    if found is None:
        raise CheckpointError(f"{run} has no checkpoint yet; train on: axon train --resume --out {run}")
    trainer = folder.recipe().build(found / "model")
    for model in trainer.models.values():
        model.to(trainer.config.device)
    state = State(trainer)
    state.load_state_dict(folder.checkpoints.read(found))
    with state.averaged():
        metrics = evaluate(trainer)
    if as_json:
        print_json(metrics)
    else:
        click.echo(f"{run} at {found.name}: {described(metrics) or 'its trainer has no evaluation'}")
