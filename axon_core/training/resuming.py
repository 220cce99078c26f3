"""The run folder of a training: starting it, resuming it, and how to resume after an error."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from axon_core.errors import CheckpointError
from axon_core.interfaces.model import Model
from axon_core.processes import first_does, from_first, is_first, together
from axon_core.registry import provenance
from axon_core.registry.lock_comparison import note_differences
from axon_core.training.parallel.alike import describe_processes
from axon_core.training.parallel.group import recall, remember
from axon_core.training.run_folder import RunFolder
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer

_log = logging.getLogger("axon")

__all__ = ["how_to_resume", "opened_run", "was_opened"]


@contextmanager
def opened_run(
    trainer: Trainer, out: Path, resume: bool | str, recipe: Mapping[str, Any] | None, state: TrainState
) -> Generator[RunFolder]:
    """Make the run folder, or reopen the one that is there; within the block no other training writes to it.

    Of several processes, the first makes and locks it.

    Args:
        trainer: what is trained.
        out: the folder.
        resume: continue from the latest checkpoint in `out`, or from the one of this name; from the start if there is
            none yet.
        recipe: what the trainer was built from.
        state: what a checkpoint is loaded into.

    Raises:
        UsageError: `out` is not empty and not to be resumed, or another process trains there.
        CheckpointError: the checkpoint is damaged or does not fit, or the folder cannot be written to.
    """
    facts = {
        "recipe": recipe,
        "trainer": trainer.config.model_dump(mode="json"),
        "models": {
            role: model.config.model_dump(mode="json")
            for role, model in trainer.models.items()
            if isinstance(model, Model)
        },
        "parts": provenance.parts_of(trainer.models.values(), type(trainer)),
        "processes": describe_processes(trainer.config),
    }
    keep = trainer.config.keep_checkpoints
    if was_opened(out):
        resume = True
    # Only the first looks: what another machine did not find on a shared disk, it may not find for a while.
    new = from_first(is_first() and (resume is False or (resume is True and not (out / "run.json").exists())))

    def opened() -> RunFolder:
        return stack.enter_context(RunFolder.created(out, facts, keep) if new else RunFolder.open(out, keep).locked())

    with ExitStack() as stack:
        mine = together(lambda: opened() if is_first() else None)
        run = RunFolder.open(out, keep) if mine is None else mine
        if not new:
            first_does(lambda: note_differences(out))
            _take_up(run, resume, state)
            run.facts.update(facts)
            first_does(run.write_facts)
        stack.callback(run.checkpoints.close)
        remember(_opened(out), "")
        yield run


def was_opened(out: Path) -> bool:
    """Return whether torchrun has started this training again after it had opened its run folder: it continues there.

    A checkpoint that was named to resume from is then no longer the one to take.
    """
    return recall(_opened(out)) is not None


def _opened(out: Path) -> str:
    return f"opened/{out.absolute()}"


def _take_up(run: RunFolder, resume: bool | str, state: TrainState) -> None:
    """Load a checkpoint, and discard what came after it."""
    name = resume if isinstance(resume, str) else None
    checkpoint = run.checkpoints.find(name)
    if checkpoint is None and run.model.exists():
        raise CheckpointError(f"{run.path} has a trained model but no checkpoint to resume from; choose another folder")
    if checkpoint is None and is_first():
        _log.warning("%s has no checkpoint yet: training starts again from step 0", run.path)
    if checkpoint is not None:
        together(lambda: state.load_state_dict(run.checkpoints.read(checkpoint)))
    first_does(lambda: run.rewind(state.step))


def how_to_resume(run: RunFolder | None, lr: float, diverged: bool = False) -> str:
    """Say from which checkpoint to resume, and how: an intact one, with a lower learning rate if training diverged.

    Args:
        run: the run folder, if there is one.
        lr: the learning rate used so far.
        diverged: whether that rate should be lowered.
    """
    if run is None:
        return "There is no run folder to resume from."
    names = run.checkpoints.names()
    intact = run.checkpoints.intact()
    if names and intact is None:
        return f"None of the checkpoints in {run.path} is intact: start the run again in another folder."
    command = f"axon train --resume --out {shlex.quote(str(run.path))}"
    if intact and intact != names[-1]:
        command += f" --from {intact}"
    if diverged:
        before = run.checkpoints.learning_rate(intact) if intact else lr
        command += f" --set trainer.optimizer.lr={before if before < lr else lr / 10:g}"
    last = f"The last checkpoint is {intact}" if intact else "There is no checkpoint yet"
    return f"{last}. Resume with: {command}"
