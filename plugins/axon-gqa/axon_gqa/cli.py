"""`axon convert gqa`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from axon_core import to_json
from axon_core.cli import device_option, echo, json_option, print_json, report_device
from axon_gqa.checkpoint import convert_checkpoint
from axon_gqa.uptraining import SHARE


@click.group("convert")
def convert() -> None:
    """Turn a trained model into another kind of model."""


@convert.command("gqa")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--groups", required=True, type=click.IntRange(1), help="Number of key/value heads to keep; 1 is MQA.")
@click.option("--out", type=click.Path(path_type=Path), help="Model folder, new or empty; by default RUN-gqa<groups>.")
@device_option
@json_option
def gqa(run: Path, groups: int, out: Path | None, device: str, as_json: bool) -> None:
    """Pool the key and value heads of the model in RUN, a run folder or a model folder, into groups.

    The new model predicts worse until it is trained a little further; the recipe for that is written beside it.
    """
    if out is None:
        named = run if run.name.strip(".") else run.resolve()
        out = named.with_name(f"{named.name}-gqa{groups}")
    report_device(device)
    models = convert_checkpoint(run, out, groups, device)
    parameters = [model.n_parameters for model in models[:2]]
    cache = [model.new_cache(1, 1).nbytes for model in models[:2]]
    recipe = models.recipe and models.recipe.source
    if as_json:
        facts = {"parameters": parameters[1], "cache_bytes_per_token": cache[1], "model": str(out), "recipe": recipe}
        print_json(facts)
        return
    echo(f"{parameters[1]:,} parameters instead of {parameters[0]:,}, in {out}")
    echo(f"{cache[1]:,} bytes of cache per token instead of {cache[0]:,}")
    if recipe:
        echo(f"Next: axon train {shlex.quote(recipe)}")
        return
    init = shlex.quote(f"model={{init={to_json(str(out), ensure_ascii=False)}}}")
    echo(
        f"{run} has no recipe for training one model. To train the new model further, use any recipe, for about "
        f"{SHARE:.0%} of the steps of the original training: axon train RECIPE --set {init} --set trainer.steps=N"
    )
