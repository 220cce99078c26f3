"""`axon train`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import click

from axon_core.checkpoint.locks import check_unlocked
from axon_core.cli.generate import generate_command
from axon_core.cli.launch import processes_options
from axon_core.cli.options import log_option, training_device_option
from axon_core.cli.output import echo, echo_generated, json_option, print_json
from axon_core.errors import UsageError
from axon_core.interfaces.model import CausalLM
from axon_core.json_text import to_json
from axon_core.processes import from_first, is_first, together, world
from axon_core.training.build import build_trainer
from axon_core.training.devices import describe_device
from axon_core.training.loop import FitResult, fit, run_evaluation
from axon_core.training.parallel.group import joined, recall, remember
from axon_core.training.planning import Plan
from axon_core.training.recipe import Recipe
from axon_core.training.resuming import was_opened
from axon_core.training.run_folder import RunFolder
from axon_core.training.trainer import Trainer


@click.command("train")
@click.argument("recipe", required=False)
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change a field of the recipe; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder, new or empty; by default runs/<recipe>-<n>.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; RECIPE is then optional.")
@click.option(
    "--from",
    "checkpoint",
    metavar="NAME",
    help="With --resume: the checkpoint to continue from, as step-100 or previous.",
)
@training_device_option
@click.option("--dry-run", is_flag=True, help="Only print the recipe as it would run, with sizes, steps and memory.")
@json_option
@log_option
@click.option("--stop-at", type=click.IntRange(min=1), help="Save and stop after this step; resume later.")
@processes_options
@joined()
def command(
    recipe: str | None,
    overrides: Sequence[str],
    out: Path | None,
    resume: bool,
    checkpoint: str | None,
    device: str | None,
    logs: Sequence[str],
    stop_at: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train from RECIPE: the name of an installed recipe, or a TOML file."""
    begun = time.monotonic()
    if device is not None:
        overrides = [*overrides, f"trainer.device={device}"]
    if as_json and not dry_run:
        raise UsageError("--json needs --dry-run; the results of a training are in run.json and metrics.jsonl")
    if dry_run and resume:
        raise UsageError("--dry-run shows a new training; leave out --resume")
    if logs:
        overrides = [*overrides, f"trainer.log={to_json(list(logs))}"]
    if checkpoint and not resume:
        raise UsageError("--from needs --resume")
    if resume and out is None:
        raise UsageError("--resume needs --out, the run folder to continue")
    if recipe is None and not resume:
        raise UsageError("name a recipe or a TOML file; `axon recipes` lists the installed ones")
    out = _place(recipe, overrides, out)
    if was_opened(out):  # torchrun has started this again
        resume, checkpoint = True, None
    there = from_first(is_first() and resume and (out / "run.json").exists())
    plan, saved = together(lambda: _planned(recipe, overrides, out, there if resume else None, checkpoint))
    trainer = together(lambda: build_trainer(plan, saved))
    if dry_run:
        if is_first():
            _show(Plan.of(plan, trainer, out), as_json)
        return
    if is_first():
        where = describe_device(trainer.config.device)
        if world() > 1:
            where += f", in {world()} processes ({trainer.config.parallel.strategy})"
        echo(f"{plan.name}: {_size(trainer)}, on {where}, into {out}", err=True)
    result = fit(
        trainer,
        out,
        resume=checkpoint or resume,
        stop_at=stop_at,
        recipe={"name": plan.name, **plan.tables},
    )
    _report(result, trainer, plan, out, time.monotonic() - begun)


def _show(plan: Plan, as_json: bool) -> None:
    """Print what a training would do."""
    if as_json:
        print_json({**plan.model_dump(mode="json"), "memory": {**plan.memory.model_dump(), "total": plan.memory.total}})
    else:
        echo("\n".join(plan.lines()))


def _place(recipe: str | None, overrides: Sequence[str], out: Path | None) -> Path:
    """Return the run folder, which the first process names if nobody has; it is the same if torchrun starts again."""
    if out is None and (before := recall("out")) is not None:
        return Path(before)
    if out is None and recipe is not None:
        plan = together(lambda: Recipe.load(recipe, overrides))
        out = Path(from_first(str(RunFolder.free_name(plan.name))))
        remember("out", str(out))
    return out or Path()


def _planned(
    recipe: str | None, overrides: Sequence[str], out: Path, there: bool | None, checkpoint: str | None
) -> tuple[Recipe, Path | None]:
    """Return the recipe of a training, and the model that it exported if it is to continue what is `there`, or not."""
    if recipe is None or there is not None:
        return _continued(recipe, overrides, out, bool(there), checkpoint)
    plan = Recipe.load(recipe, overrides)
    if is_first():
        RunFolder.check_free(out)
    return plan, None


def _continued(
    recipe: str | None, overrides: Sequence[str], out: Path, there: bool, checkpoint: str | None
) -> tuple[Recipe, Path | None]:
    """Return the recipe of a run to continue, and the model it exported last, if there is a run."""
    if recipe and not there:  # killed before it started
        if is_first():
            RunFolder.check_free(out)
            echo(f"{out} has no run to resume; starting a new one", err=True)
        return Recipe.load(recipe, overrides), None
    run = RunFolder.open(out)
    if is_first():
        check_unlocked(out)  # before the data are read
    before = run.recipe()
    plan = Recipe.load(recipe, overrides) if recipe else run.recipe(overrides)
    for table in ("model", "data", *sorted({*before.sections, *plan.sections})):
        old, new = before.tables.get(table, {}), plan.tables.get(table, {})
        if old != new:
            name = next(key for key in {**old, **new} if old.get(key) != new.get(key))
            raise UsageError(
                f"a run keeps its model and data: {table}.{name} was {old.get(name)!r} in {out} and is now "
                f"{new.get(name)!r}. Start a new run, or resume without this change"
            )
    found = run.checkpoints.find(checkpoint)
    return plan, found and found / "model"


def _size(trainer: Trainer) -> str:
    """Return how many parameters the models have that are trained, and how many of them are frozen, if any are."""
    parameters = {p for role in trainer.trainable for p in trainer.models[role].parameters()}
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    size = f"{sum(parameter.numel() for parameter in parameters):,} parameters"
    return f"{size}, {frozen:,} of them frozen" if frozen else size


def _report(result: FitResult, trainer: Trainer, plan: Recipe, out: Path, seconds: float) -> None:
    """Print the result, where it is, and a command to run next; the sample is made by all processes."""
    sample = None if result.status == "paused" else run_evaluation(trainer, trainer.sample)
    if not is_first():
        return
    folder = shlex.quote(str(out))
    echo(f"{result.status} after step {result.step}, {timedelta(seconds=round(seconds))}")
    if result.metrics:
        part = "held out" if plan.tables.get("data", {}).get("validation") is None else "validation"
        echo(f"{part}: {described(result.metrics)}")
    if result.status == "paused":
        echo(f"Continue with: axon train --resume --out {folder}")
        return
    if sample is not None:
        echo_generated(f"\n{sample}\n")
    echo(f"Run folder: {out}")
    if result.run is not None and result.run.plot.exists():
        echo(f"Loss plot:  {result.run.plot}")
    echo(f"Next:       {_next(trainer, out, sample or '')}")


def _next(trainer: Trainer, out: Path, sample: str) -> str:
    """Return the command to run next: the trainer's own, or the one for its kind of model."""
    folder = shlex.quote(str(out))
    if trainer.next_command is not None:
        return trainer.next_command.replace("{run}", folder)
    if any(isinstance(trainer.models[role], CausalLM) for role in trainer.trainable):
        return generate_command(out, out / "model", sample)
    return f"axon evaluate {folder}"


def described(metrics: Mapping[str, float | str]) -> str:
    """Return an evaluation as text; a loss beside `bits_per_byte` is in nats per token."""
    units = {"loss": " nats per token"} if "bits_per_byte" in metrics else {}
    values = {
        name: value if isinstance(value, str) else f"{value:,.4f}".removesuffix(".0000")
        for name, value in metrics.items()
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}{units.get(name, '')}" for name, value in values.items())
