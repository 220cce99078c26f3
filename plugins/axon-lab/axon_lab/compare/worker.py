"""The process of one run: it trains, measures, and writes `result.json` into the run's folder.

It saves and ends when its standard input is closed, as when the process that started it dies.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from axon_core import AxonError, CausalLM, CheckpointError, Interrupted, Sampling, Trainer, UsageError, build_trainer
from axon_core import Recipe as TrainingRecipe
from axon_core.checkpoint import lock_folder, write_text
from axon_core.cli import echo
from axon_core.generation import decode
from axon_core.training import RunFolder, fit
from axon_lab.compare.cells import reason, silenced
from axon_lab.compare.design import Design
from axon_lab.compare.folder import ComparisonFolder, RunKey
from axon_lab.compare.measurements import Measurements, Pace, points_at
from axon_lab.compare.results import RunResult

__all__ = ["DISK", "decode_speed", "recipe_of_run", "train_run", "work"]

DISK = 75
"""Exit code of a run that ended because something could not be written: it is tried again."""
_WAIT = 60.0  # seconds for an earlier process of the same run to save and end


def recipe_of_run(design: Design, key: RunKey, steps: int) -> TrainingRecipe:
    """Return the recipe of one run.

    The recipe's own `eval_every` gives way to evaluations at equal distances, unless the command line sets it, or
    `patience` counts them.
    """
    with silenced():
        recipe = design.recipe_of(design.cells[key.cell].values, f"trainer.seed={key.seed}", f"trainer.steps={steps}")
        if design.sets("trainer.eval_every") or recipe.trainer.options.get("patience") is not None:
            return recipe
        tables = recipe.tables
        tables["trainer"] = {name: value for name, value in tables["trainer"].items() if name != "eval_every"}
        return TrainingRecipe.of(tables, recipe.name, recipe.source)


def train_run(folder: ComparisonFolder, key: RunKey, steps: int) -> RunResult:
    """Train one run to its end, from its last checkpoint if there is one, and return what was measured.

    Raises:
        AxonError: the training fails.
        UsageError: another process trains there.
        CheckpointError: the folder cannot be written to.
    """
    design, out = folder.design, folder.run(key)
    saved = _taken_up(out)
    recipe = recipe_of_run(design, key, steps)
    trainer = build_trainer(recipe, saved)
    measured = Measurements(out / "measurements.json", points_at(steps, design.evaluations), design.metric)
    result = fit(
        trainer,
        out,
        resume=saved is not None,
        hooks=[measured],
        progress=False,
        recipe={"name": recipe.name, **recipe.tables},
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if design.metric not in result.metrics:
        known = ", ".join(result.metrics) or "nothing"
        raise UsageError(f"there is no metric {design.metric!r}: the evaluation has {known}")
    seconds = measured.seconds
    return RunResult(
        seed=key.seed,
        status="done",
        folder=folder.relative(key),
        value=result.metrics[design.metric],
        curve=measured.curve,
        steps=result.step,
        seconds=seconds,
        tokens_per_s=measured.units / seconds if seconds else None,
        memory_bytes=memory,
        decode_tokens_per_s=decode_speed(trainer),
    )


def _taken_up(out: Path) -> Path | None:
    """Return the model of the last checkpoint of a run, or None after removing what cannot be continued."""
    _await(out)
    with suppress(CheckpointError):
        if found := RunFolder.open(out).checkpoints.find(None):
            return found / "model"
    if out.exists():
        shutil.rmtree(out)
    return None


def _await(out: Path) -> None:
    """Wait until an earlier process of the same run, whose parent was killed, has saved and ended."""
    until = time.monotonic() + _WAIT
    while out.is_dir():
        try:
            with lock_folder(out):
                return
        except UsageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def decode_speed(trainer: Trainer) -> float | None:
    """Return how many tokens the trained model generates in a second: greedily, one row, the fastest of three texts.

    The prompt's pass does not count. None if no trained model generates text.
    """
    model = next((m for role in trainer.trainable if isinstance(m := trainer.models[role], CausalLM)), None)
    if model is None or model.context < 4:
        return None
    prompt = [0] * min(8, model.context // 2)
    new = min(64, model.context - len(prompt))
    best = 0.0
    for _ in range(3):
        rows = decode(model, [prompt], [0], max_new_tokens=new, sampling=Sampling(temperature=0))
        next(rows)
        begun = time.perf_counter()
        count = sum(1 for _ in rows)
        best = max(best, count / (time.perf_counter() - begun))
    return best or None


def pace(folder: ComparisonFolder, cell: int, seconds: float) -> float:
    """Return the seconds that an update of a cell takes: the median over a tenth of the time that a run has.

    Raises:
        AxonError: the training fails.
    """
    key = RunKey(cell, folder.design.seeds[0])
    trainer = build_trainer(recipe_of_run(folder.design, key, 1_000_000))
    measured = Pace(seconds / 10)
    fit(trainer, hooks=[measured], progress=False, stop_at=10_000)
    return measured.median


def _end_with_parent() -> None:
    """Ask this process to save and end as soon as the standard input is closed."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def work(arguments: list[str]) -> int:
    """Do `run FOLDER CELL SEED STEPS`, or measure for `pace FOLDER CELL SECONDS`; return an exit code."""
    _end_with_parent()
    torch.set_num_threads(1)
    kind, place, cell, *rest = arguments
    try:
        folder = ComparisonFolder.open(Path(place))
        if kind == "pace":
            folder.write_pace(int(cell), pace(folder, int(cell), float(rest[0])))
            return 0
        key = RunKey(int(cell), int(rest[0]))
        result = train_run(folder, key, int(rest[1]))
        write_text(folder.result(key), result.model_dump_json())
        shutil.rmtree(folder.run(key) / "checkpoints", ignore_errors=True)  # the model stays
    except Interrupted:
        return 130
    except (CheckpointError, OSError) as error:
        echo(f"Error: {reason(error)}", err=True)
        return DISK
    except Exception as error:
        echo(f"Error: {reason(error)}", err=True)
        return error.exit_code if isinstance(error, AxonError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(work(sys.argv[1:]))
