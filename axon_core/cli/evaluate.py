"""`axon evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from axon_core.cli.options import device_option, report_device
from axon_core.cli.output import echo, json_option, print_json
from axon_core.cli.train import described
from axon_core.config import Config, at, validate
from axon_core.errors import CheckpointError, UsageError
from axon_core.progress import Clock
from axon_core.training.build import build_trainer
from axon_core.training.evaluation import Listener, TextEvaluation, report_progress_to
from axon_core.training.loop import evaluate
from axon_core.training.recipe import Recipe
from axon_core.training.run_folder import RunFolder
from axon_core.training.train_state import TrainState
from axon_core.training.trainers import TRAINERS

C = TypeVar("C", bound=Config)


@click.command("evaluate", context_settings={"ignore_unknown_options": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("given", metavar="[--OPTION VALUE]...", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--from", "checkpoint", metavar="NAME", help="Checkpoint, as step-100 or previous; by default the latest."
)
@click.option(
    "--set",
    "overrides",
    metavar="trainer.A=B",
    multiple=True,
    help="Change a field of the trainer for this evaluation; repeatable.",
)
@device_option
@json_option
def command(
    run: Path,
    given: tuple[str, ...],
    checkpoint: str | None,
    overrides: Sequence[str],
    device: str,
    as_json: bool,
) -> None:
    """Evaluate the model in the run folder RUN on the held-out part of its data.

    With --text FILE, evaluates any language model, in a run folder or a model folder, on that text: nats per token
    and per byte, and perplexity. Some trainers also evaluate on other data; their plugin's README lists the options.
    """
    if given and overrides:
        raise UsageError(
            f"--set applies to the run's own held-out data, but {given[0]} selects other data; leave one of them out"
        )
    report_device(device)
    place = f"{run}"
    with report_progress_to(_told()):
        if (run / "config.json").exists() and not (run / "run.json").exists():  # a model's folder
            if not given:
                raise UsageError(f"{run} is a model folder and has no held-out data; give a text with --text FILE")
            metrics = _options(TextEvaluation, given).evaluate(run, device)
        else:
            folder = RunFolder.open(run)
            found = click.get_current_context().with_resource(folder.checkpoints.reading(checkpoint))
            if found is None:
                place = shlex.quote(str(run))
                raise CheckpointError(f"{run} has no checkpoint yet; continue with: axon train --resume --out {place}")
            recipe = _kept(folder.recipe(), folder.recipe([f"trainer.device={device}", *overrides]))
            place = f"{run} at {found.name}"
            metrics = _on(recipe, found / "model", given, device) if given else _held_out(recipe, folder, found)
    if as_json:
        print_json(metrics)
    else:
        echo(f"{place}: {described(metrics) or 'its trainer defines no evaluation'}")


def _told() -> Listener:
    clock = Clock(5.0)

    def tell(**facts: Any) -> None:
        if line := clock.line(**facts):
            echo(line, err=True)

    return tell


def _kept(before: Recipe, plan: Recipe) -> Recipe:
    """Return `plan`, which must equal the recipe of the run except for the trainer's settings."""
    for name in ("summary", "model", "data"):
        if plan.tables[name] != before.tables[name]:
            raise UsageError(
                f"a run keeps its {name}: --set changes only fields of the trainer, for example trainer.precision=fp32"
            )
    if plan.trainer.type != before.trainer.type:
        raise UsageError(f"a run keeps its trainer, {before.trainer.type}; got {plan.trainer.type}")
    return plan


def _held_out(recipe: Recipe, folder: RunFolder, checkpoint: Path) -> Mapping[str, float | str]:
    trainer = build_trainer(recipe, checkpoint / "model")
    state = TrainState(trainer)
    state.load_state_dict(folder.checkpoints.read(checkpoint))
    with state.averaged():
        return {**evaluate(trainer), **trainer.evaluation_facts()}


def _on(recipe: Recipe, model: Path, given: Sequence[str], device: str) -> Mapping[str, float | str]:
    """Evaluate on the user's data: with the trainer's own `Evaluation`, or on a text if it has a language model."""
    trainer = TRAINERS[recipe.trainer.type]
    if fields := trainer.Evaluation.model_fields:
        trained = {name: value for name, value in recipe.trainer.options.items() if name in fields}
        return _options(trainer.Evaluation, given, trained).evaluate(model, device)
    if not (model / "config.json").exists():
        raise UsageError(f"no such option: {given[0]}; this trainer evaluates only on its own held-out data")
    return _options(TextEvaluation, given).evaluate(model, device)


def _options(kind: type[C], given: Sequence[str], otherwise: Mapping[str, Any] | None = None) -> C:
    """Return the config whose fields are given as options `--x value`; `otherwise` has values for omitted fields."""
    values: dict[str, Any] = {**(otherwise or {})}
    words = iter(given)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise UsageError(f"got an unexpected argument {word!r}; an option has the form --name VALUE")
        if not equals and (value := next(words, None)) is None:
            raise UsageError(f"the option {name} needs a value")
        values[name[2:].replace("-", "_")] = value
    with at(source="the options of axon evaluate"):
        return validate(kind, values)
