"""`axon compare`."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from axon_core import TRAINERS, CheckpointError, Interrupted, Recipe, UsageError, build_trainer, parse_json
from axon_core.checkpoint import lock_folder, writing
from axon_core.cli import ProgressLine, echo, json_option, print_json, training_device_option
from axon_core.training import choose_device, describe_device, evaluate
from axon_lab.compare.cells import check_cells, silenced
from axon_lab.compare.design import Design, differences, expand, parse_axes, parse_budget, parse_seeds
from axon_lab.compare.folder import ComparisonFolder
from axon_lab.compare.runs import ComparisonRuns

__all__ = ["command"]

_HIGHER = ("accuracy", "bleu", "chrf", "reward", "return", "win", "margin", "agreement")


@click.command("compare")
@click.argument("recipe", required=False)
@click.option(
    "--vary",
    "axes",
    metavar="A.B=V,V",
    multiple=True,
    help="A field and its values; the first is what the others are compared with. '*' stands for every registered "
    "part, the recipe's own first. Repeatable.",
)
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change a field for all runs; repeatable.")
@click.option("--seeds", type=int, help="How many seeds each cell is trained with: 0, 1, …; by default 3.")
@click.option("--seed-list", metavar="N,N", help="The seeds themselves, instead of --seeds.")
@click.option(
    "--budget",
    metavar="UNIT=N",
    multiple=True,
    help="What each run may use up: steps, tokens, flops (by the operations of a cell's update) or seconds (by a "
    "cell's pace, which is measured first, so that its schedule fits). By default the recipe's steps.",
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Runs at the same time, each with one thread.")
@click.option("--out", type=click.Path(path_type=Path), help="The comparison's folder: new, or one to continue.")
@click.option("--metric", default="loss", show_default=True, help="The number of the trainer's evaluation to compare.")
@click.option(
    "--better", type=click.Choice(["higher", "lower"]), help="Which metric is better; by default by its name."
)
@click.option("--evaluations", type=int, default=5, show_default=True, help="How often each run is evaluated.")
@click.option("--max-runs", type=int, default=1000, show_default=True, help="Refuse to begin more runs than this.")
@click.option("--retry", is_flag=True, help="Also do runs again that failed; others are continued anyway.")
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Only write DIR's report again.")
@training_device_option
@json_option
def command(
    recipe: str | None,
    axes: Sequence[str],
    overrides: Sequence[str],
    seeds: int | None,
    seed_list: str | None,
    budget: Sequence[str],
    jobs: int,
    out: Path | None,
    metric: str,
    better: str | None,
    evaluations: int,
    max_runs: int,
    retry: bool,
    report: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Train RECIPE with parts and options varied, over seeds, and say what can be concluded.

    RECIPE is the name of an installed recipe, or a TOML file. Each run is a process of its own, with a run folder in
    --out. The same command continues a comparison that was interrupted.
    """
    if report is not None:
        if recipe or axes or overrides or out:
            raise UsageError("--report writes a comparison's report again, without training; give its folder alone")
        _report(ComparisonFolder.open(report), as_json)
        return
    if device is not None:
        overrides = [*overrides, f"trainer.device={device}"]
    if recipe is None:
        raise UsageError("name a recipe or a TOML file; `axon recipes` lists the installed ones")
    if out is None:
        raise UsageError("name the comparison's folder with --out; the same command then continues it")
    for name, number in (("--jobs", jobs), ("--evaluations", evaluations), ("--max-runs", max_runs)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
    there = ComparisonFolder.is_there(out)
    asked = _design(recipe, axes, overrides, parse_seeds(seeds, seed_list), budget, metric, better, evaluations)
    with _claimed(out):
        folder = _continued(out, asked) if there else _begun(out, asked, max_runs)
        runs = ComparisonRuns(folder, jobs, retry)
        try:
            interrupted = runs.run()
        except CheckpointError:
            with suppress(CheckpointError):  # the first error is the one to report
                _report(folder, as_json)
            raise
        _report(folder, as_json)
    if interrupted:
        raise Interrupted("interrupted; all runs are saved. Continue with the same command")
    runs.check()


@contextmanager
def _claimed(out: Path) -> Generator[None]:
    """Make and lock a folder for the block; a new one that nothing was written into is removed again."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(out):
            yield
    finally:
        with suppress(OSError):
            out.rmdir()


def _design(
    name: str,
    vary: Sequence[str],
    overrides: Sequence[str],
    seeds: tuple[int, ...],
    budget: Sequence[str],
    metric: str,
    better: str | None,
    evaluations: int,
) -> Design:
    """Return what the command line asks for, without cells."""
    axes = parse_axes(vary, overrides)
    allowed = parse_budget(budget, overrides, axes)
    recipe = Recipe.load(name)
    return Design(
        recipe=recipe.name,
        tables=recipe.tables,
        overrides=tuple(overrides),
        asked=axes,
        seeds=seeds,
        budget=allowed,
        evaluations=evaluations,
        metric=metric,
        higher_is_better=better == "higher" if better else any(word in metric.lower() for word in _HIGHER),
    )


def _continued(out: Path, asked: Design) -> ComparisonFolder:
    """Return the comparison in a folder. Raises `UsageError` if something else is asked for."""
    folder = ComparisonFolder.open(out)
    if found := differences(folder.design, asked):
        raise UsageError(
            f"{out} holds another comparison, which differs in {'; '.join(found)}. Repeat its command to continue it, "
            "or choose another folder with --out"
        )
    return folder


def _begun(out: Path, asked: Design, max_runs: int) -> ComparisonFolder:
    """Check all cells before any run, and return the new comparison.

    Raises:
        UsageError: there are too many runs, or what is asked for does not fit the recipe.
    """
    base = Recipe.of(asked.tables, asked.recipe, asked.recipe, asked.overrides)
    design = asked.model_copy(update={"axes": tuple(expand(base, axis) for axis in asked.asked)})
    cells = math.prod(len(axis.values) for axis in design.axes)
    if not design.seeds or cells * len(design.seeds) > max_runs:
        seeds = f"{len(design.seeds):,}" if design.seeds else "over a million"
        raise UsageError(
            f"this would be {cells:,} cells with {seeds} seeds each, and at most {max_runs:,} runs are begun; vary "
            "less, or allow more with --max-runs"
        )
    design, dropped = check_cells(design, ProgressLine("checking cells"))
    for line in dropped:
        echo(line, err=True)
    for left in design.left_out:
        echo(f"left out: {' · '.join(left.values)}: {left.reason}", err=True)
    design = _described(design)
    return ComparisonFolder.create(out, design)


def _described(design: Design) -> Design:
    """Return the design with the metric's unit and the hardware.

    Raises:
        UsageError: the evaluation does not have the metric. Unless it is `loss`, that is seen by evaluating the first
            cell, untrained.
    """
    with silenced():
        recipe = design.recipe_of(design.cells[0].values)
    if design.metric != "loss":
        with silenced():
            trainer = build_trainer(recipe)
        names = evaluate(trainer)
        if design.metric not in names:
            raise UsageError(
                f"--metric {design.metric}: the evaluation of {design.recipe} has no such number; choose one of "
                f"{', '.join(names) or 'none'}"
            )
    counted = TRAINERS[recipe.trainer.type].unit
    device = str(recipe.trainer.options.get("device", "auto"))
    hardware = (
        f"{describe_device(choose_device(device))}, {os.cpu_count()} CPUs ({platform.machine()}), one thread a run"
    )
    return design.model_copy(update={"unit": _unit(design.metric, counted), "counted": counted, "hardware": hardware})


def _unit(metric: str, counted: str) -> str:
    """Return a metric's unit, as far as its name and what the training counts tell."""
    if metric == "loss":
        return "nats" if counted == "tokens" else ""
    return metric.replace("_", " ") if metric.startswith("bits_per_") else ""


def _report(folder: ComparisonFolder, as_json: bool) -> None:
    """Write the report, and print it."""
    writer: Any = import_module("axon_lab.compare.report")
    text = writer.write_report(folder.comparison(), folder.path)
    if as_json:
        print_json(parse_json((folder.path / "compare.json").read_text("utf-8-sig")))
    else:
        echo(text)
        echo(f"Report: {folder.path / 'compare.html'}")
