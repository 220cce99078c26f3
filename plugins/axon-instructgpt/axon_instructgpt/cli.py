"""`axon align`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from axon_core import AxonError, Interrupted
from axon_core.cli import echo, log_option, training_device_option
from axon_core.training import RunFolder
from axon_instructgpt.pipeline import Pipeline, align


@click.command("align")
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all stages; by default runs/<recipe>-<n>.")
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change a field of the recipe; repeatable.")
@training_device_option
@log_option
def command(recipe: str, out: Path | None, overrides: Sequence[str], device: str | None, logs: Sequence[str]) -> None:
    """Align a language model by RECIPE: the name of an installed recipe, or a TOML file, with a table for each stage.

    With the --out of an interrupted run, continues where that run stopped.
    """
    pipeline = Pipeline.load(recipe, overrides, device, logs)
    out = out or RunFolder.free_name(pipeline.name)
    words = ["axon", "align", recipe, "--out", str(out), *(word for text in overrides for word in ("--set", text))]
    words += [] if device is None else ["--device", device]
    words += [word for name in logs for word in ("--log", name)]
    told = list[str]()

    def tell(line: str) -> None:
        told.append(line)
        echo(line, err=True)

    try:
        align(pipeline, out, tell)
    except Interrupted:
        raise Interrupted(f"interrupted; finished work is saved. Continue with: {shlex.join(words)}") from None
    except AxonError:
        if told and out.exists():  # a folder that was refused cannot be continued
            echo(f"Finished work is in {out}; continue with: {shlex.join(words)}", err=True)
        raise
    for name in pipeline.stages:
        if (page := out / name / "report.md").exists():
            echo(page.read_text(encoding="utf-8-sig"))
    echo(f"All stages are in {out}")
