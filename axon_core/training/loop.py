"""The training loop, one for all papers: it runs, evaluates, saves and resumes what a trainer supplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from axon_core.errors import AxonError, CheckpointError, Interrupted, TrainingError
from axon_core.processes import PeerError, agree, first_does, is_lost, world
from axon_core.randomness import Key, forked
from axon_core.training.allocator import keep_freed_memory
from axon_core.training.callbacks.usual import usual_hooks
from axon_core.training.devices import works_apart
from axon_core.training.evaluation import report_progress_to
from axon_core.training.examples import Examples, resting
from axon_core.training.hooks import Hooks
from axon_core.training.optim import schedule
from axon_core.training.parallel.alike import check_alike
from axon_core.training.parallel.group import joined, note_step
from axon_core.training.parallel.strategies import prepare, strategy_of
from axon_core.training.parallel.strategy import Strategy
from axon_core.training.resuming import how_to_resume, opened_run
from axon_core.training.run_folder import RunFolder
from axon_core.training.signals import first_signal
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer
from axon_core.training.updates import Update, Updater, autocast, fetch

__all__ = ["Fit", "FitResult", "evaluate", "fit", "run_evaluation"]

T = TypeVar("T")
_FLAGS = ("save", "eval", "stop", "interrupted", "ending")
Status = Literal["finished", "stopped", "paused", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """The outcome of a training."""

    step: int
    """Steps done in all."""
    status: Status
    """Whether all steps were done, a hook or `patience` ended it, or `stop_at` did."""
    metrics: dict[str, float]
    """The last evaluation; empty if the trainer has none."""
    run: RunFolder | None
    """The run folder, if there is one."""


def fit(
    trainer: Trainer,
    out: Path | str | None = None,
    *,
    resume: bool | str = False,
    stop_at: int | None = None,
    hooks: Iterable[object] = (),
    progress: bool = True,
    recipe: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train, and leave the result in the trainer's models and in the run folder `out`.

    The models end in evaluation mode, with the averaged weights if there is an average.
    Resuming continues exactly: N steps, then N more, equal 2N bit for bit on CPU.

    Args:
        trainer: what to train.
        out: the run folder, made here; without one nothing is written.
        resume: continue from the latest checkpoint in `out`, or from the one of this name; from the start if there is
            none yet.
        stop_at: save and return after this step even if more are to come, as when a machine is available for an hour.
        hooks: objects to tell of the events; those of installed plugins are added.
        progress: show progress on standard error or in a notebook's cell; a `Progress` among `hooks` replaces the usual
            line.
        recipe: what the trainer was built from, for `run.json`.

    Raises:
        UsageError: `out` is not empty and not to be resumed, a package for `log` is not installed, or the processes
            differ in recipe, versions, data, models or these arguments.
        CheckpointError: the checkpoint is damaged or does not fit, or the folder cannot be written to.
        TrainingError: the loss is no longer finite; on a GPU the models then hold what the failed step made of them.
        ContractError: the trainer's losses and counts have different names, or no loss has a gradient.
        Interrupted: by Ctrl-C or a request to terminate; all is saved.
        PeerError: another process failed; or one is lost, or does not answer in time.
    """
    with joined(trainer.config.parallel.timeout):
        given = usual_hooks(hooks, saved=out is not None, progress=progress, logs=trainer.config.log)
        check_alike(trainer, recipe, out="none" if out is None else "a folder", resume=resume, stop_at=stop_at)
        strategy = prepare(trainer)
        state = TrainState(trainer)
        end = min(stop_at or trainer.config.steps, trainer.config.steps)
        with strategy.as_workers():
            if out is None:
                return Fit(trainer, state, None, Hooks(given), strategy).run_to(end)
            with opened_run(trainer, Path(out), resume, recipe, state) as run:
                return Fit(trainer, state, run, Hooks(given), strategy).run_to(end)


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Return the trainer's own evaluation, see `run_evaluation`. Raises `UsageError` as that does."""
    return run_evaluation(trainer, trainer.evaluate)


def run_evaluation(trainer: Trainer, measure: Callable[[], T]) -> T:
    """Return `measure()`, computed in evaluation mode, on the trainer's device, in its precision, without gradients.

    Raises:
        UsageError: the models are sharded over processes that have parted.
    """
    strategy = strategy_of(trainer)
    strategy.place()
    key = Key((trainer.config.seed, "evaluate"))
    with resting(trainer), autocast(trainer.config), key.seeded(trainer.config.device), strategy.as_workers():
        return strategy.whole(measure)


class Fit:
    """One training in progress, as hooks see it.

    Attributes:
        trainer: what is trained.
        state: weights, optimisers and counters; `state.step` steps are done.
        run: the run folder, if there is one.
        units: how many of the trainer's `unit` were trained on since this process began.
    """

    def __init__(
        self,
        trainer: Trainer,
        state: TrainState,
        run: RunFolder | None,
        hooks: Hooks,
        strategy: Strategy | None = None,
    ) -> None:
        self.trainer, self.state, self.run = trainer, state, run
        self.units = 0.0
        self._hooks = hooks
        self._caught: list[int] = []
        self._ending: BaseException | None = None
        self._ends = False  # as all processes have agreed: a signal may come to one of them at any time
        self._config = trainer.config
        self._strategy = strategy = strategy or strategy_of(trainer)
        self._examples = Examples(trainer, strategy, trainer.config.steps)

    def run_to(self, end: int) -> FitResult:
        """Do the remaining steps up to `end`; see `fit`.

        Raises:
            CheckpointError: the run folder cannot be written to.
            TrainingError: the loss is no longer finite.
            ContractError: the trainer's losses and counts have different names, or no loss has a gradient.
            Interrupted: by Ctrl-C or a request to terminate; all is saved.
        """
        config, state = self._config, self.state
        if not works_apart(config.device):
            keep_freed_memory()
        self._examples = Examples(self.trainer, self._strategy, end)
        self._updater = Updater(self.trainer, state, self._strategy, self._check_measured)
        for role, model in self.trainer.models.items():
            model.train(self.trainer.training_mode and role in self.trainer.trainable)
            model.zero_grad(set_to_none=True)  # what an earlier backward pass may have left
        told = report_progress_to(partial(self._hooks.emit, "eval_progress", fit=self))
        with first_signal(self.run is not None) as caught, forked(config.device), self._reported(), told:
            self._caught = caught
            self._agreed(self._tell("fit_start"))
            status = self._status(end)
            while status is None and not self._ends:
                asked = self._agreed(self._tell("step_end", metrics=self._step()))
                if self.run is not None and self.run.checkpoints.is_saving and agree(self.run.checkpoints.has_ended()):
                    self._complete_save()
                if state.step == config.steps or asked & {"eval", "stop"} or _due(state.step, config.eval_every):
                    self._check()
                    with self._rescued(shared=False):
                        asked |= self._agreed(self._evaluate())
                status = self._status(end, stop="stop" in asked)
                if status is None and self._ends:
                    status = "interrupted"
                regular = status in ("finished", "stopped") or "save" in asked or _due(state.step, config.save_every)
                if status or regular:
                    self._save(interim=not regular, background=status is None and config.checkpoint_in_background)
                    self._agreed(set())  # whether a hook of a process failed at the news
            if status is None:  # all have agreed to end before another step
                status = "interrupted"
            # Also if nothing was left to do: the previous process may have been killed here.
            if (run := self.run) is not None and state.step:
                first_does(run.publish)
            if self._ending is not None:
                self._ending.add_note(f"A hook ended the training after step {state.step}. {self._remedy()}")
                raise self._ending
            if status == "interrupted":
                raise Interrupted(f"interrupted after step {state.step}; everything is saved. {self._remedy()}")
            self._hooks.emit("fit_end", fit=self)
        state.settle()
        for model in self.trainer.models.values():
            model.eval()
        return FitResult(state.step, status or "stopped", state.evaluation, self.run)

    def _status(self, end: int, stop: bool = False) -> Status | None:
        """Return why training is over, or None."""
        if self.state.step >= self._config.steps:
            return "finished"
        if stop or self.state.exhausted:
            return "stopped"
        return "paused" if self.state.step >= end else None

    def _step(self) -> dict[str, float]:
        """Do one step and return its losses, gradient norm and learning rate; a GPU is waited for once."""
        config, trainer, step = self._config, self.trainer, self.state.step
        note_step(step)
        if self.run is not None:
            self.run.check()
        key = Key((config.seed, step))
        with self._rescued():
            given = self._examples.build(step)
        with self._rescued(shared=False):
            trainer.before_step(step)
            given = self._examples.collect(given, step)
        factor = schedule(
            config.schedule, step, steps=config.steps, warmup=config.warmup, final=config.final_lr_fraction
        )
        updates: list[Update] = []
        try:
            for number, minibatch in enumerate(trainer.minibatches(given.rows, key("minibatches")), 1):
                updates.append(self._updater.update(replace(given, rows=minibatch), key("update", number), factor))
        except Exception as error:
            if world() == 1:  # else the other processes may be elsewhere
                self._check(error)  # weights that are not finite are the reason, whatever the error says
            raise
        self._examples.build_ahead(step + 1)
        metrics: dict[str, float] = {}
        for measured in fetch(updates):
            self._check_measured(measured.metrics)
            self.units += measured.units
            for name, value in measured.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        self.state.step = step + 1
        metrics = {name: value / len(updates) for name, value in metrics.items()}
        rates = [group["lr"] for optimizer in self.state.optimizers for group in optimizer.param_groups]
        return {**metrics, "learning_rate": rates[0]} if rates else metrics

    def _check_measured(self, metrics: Mapping[str, float]) -> None:
        """Raise `TrainingError` if the loss of an update, or the norm of its gradients, is not finite."""
        if not math.isfinite(metrics["loss"]):
            values = ", ".join(f"{name} {value}" for name, value in metrics.items() if name != "grad_norm")
            raise TrainingError(self._diverged(f"the loss is not finite: {values}"))
        if not math.isfinite(norm := metrics.get("grad_norm", 0.0)):
            raise TrainingError(self._diverged(f"the norm of the gradients is {norm}"))

    def _evaluate(self) -> set[str]:
        """Evaluate with the averaged weights, if there are any; return what hooks ask for."""
        with self.state.averaged():
            metrics = evaluate(self.trainer)
        if not metrics:
            return set()
        self.state.judge(metrics)
        if (run := self.run) is not None:
            run.facts["evaluation"] = {"step": self.state.step, **metrics, **self.trainer.evaluation_facts()}
            first_does(run.write_facts)
        return self._tell("eval_end", metrics=metrics)

    def _check(self, cause: BaseException | None = None) -> None:
        """Raise `TrainingError` if a weight is not finite, or anything the optimiser or the average keeps for it."""
        if (name := self.state.not_finite()) is not None:
            raise TrainingError(self._diverged(f"{name} has a number that is not finite")) from cause

    def _save(self, interim: bool, background: bool = False) -> None:
        """Write a checkpoint, if there is a folder; the weights are checked first in any case."""
        self._check()
        if (run := self.run) is None:
            return
        run.check()
        self._complete_save()
        with self._with_remedy(), self.state.averaged():
            path = run.checkpoints.save(
                self.state.step, self.state.state_dict(), self.trainer.export, interim=interim, background=background
            )
        if not background:
            self._tell("saved", path=path)

    def _complete_save(self) -> None:
        """Wait for the checkpoint that is being written in the background, if there is one."""
        if self.run is None:
            return
        with self._with_remedy():
            path = self.run.checkpoints.wait()
        if path is not None:
            self._tell("saved", path=path)

    @contextmanager
    def _with_remedy(self) -> Generator[None]:
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._remedy()}") from error

    def _tell(self, event: str, **facts: Any) -> set[str]:
        """Tell the hooks of an event and return their requests; an error that ends training waits for the save."""
        try:
            return self._hooks.emit(event, fit=self, **facts)
        except (AxonError, SystemExit, KeyboardInterrupt) as error:
            if self._caught and isinstance(error, KeyboardInterrupt):
                raise  # the second request, to stop at once
            self._ending = error
            return set()

    def _agreed(self, asked: set[str]) -> set[str]:
        """Return what hooks of any process ask for; note whether all end: on a signal, or for the error of a hook."""
        if world() == 1:
            self._ends = bool(self._caught) or self._ending is not None
            return asked
        said = {*asked, *(["interrupted"] if self._caught else []), *(["ending"] if self._ending else [])}
        flags = agree(sum(1 << i for i, flag in enumerate(_FLAGS) if flag in said))
        agreed = {flag for i, flag in enumerate(_FLAGS) if flags >> i & 1}
        if "interrupted" in agreed and not self._caught:
            self._caught.append(0)
        if "ending" in agreed and self._ending is None:
            self._ending = PeerError("a hook of another process ended the training")
        self._ends = not agreed.isdisjoint(("interrupted", "ending"))
        return agreed & {"save", "eval", "stop"}

    @contextmanager
    def _rescued(self, shared: bool = True) -> Generator[None]:
        """If the block, between two steps, fails or is interrupted, save a checkpoint and re-raise.

        If it is not `shared`, only one of several processes may have failed. The others cannot help to save then.
        """
        try:
            yield
        except BaseException as error:
            if self._caught and isinstance(error, KeyboardInterrupt):
                raise  # the second request, to stop at once
            if world() > 1 and (is_lost(error) or not shared):
                raise
            self._check(error)  # weights that are not finite are the reason, whatever the error says
            if self.run is not None and self.state.step:
                with suppress(CheckpointError):  # the first error is the one to report
                    if f"step-{self.state.step}" not in self.run.checkpoints.names():
                        self._save(interim=not _due(self.state.step, self._config.save_every))
                    error.add_note(self._remedy())
            raise

    @contextmanager
    def _reported(self) -> Generator[None]:
        try:
            yield
        except BaseException as error:
            if is_lost(error):
                error.add_note(self._remedy())
            self._hooks.emit("error", fit=self, error=error)
            raise

    def _diverged(self, what: str) -> str:
        return (
            f"after {self.state.step} steps, {what}. Lower the learning rate (trainer.optimizer.lr), warm it up "
            "(trainer.warmup), limit the gradients (trainer.max_grad_norm=1) or compute in fp32 (trainer.precision). "
            f"{self._remedy(diverged=True)}"
        )

    def _remedy(self, diverged: bool = False) -> str:
        return how_to_resume(self.run, self._config.optimizer.lr, diverged)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
