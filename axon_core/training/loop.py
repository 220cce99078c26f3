"""The training loop, one for all papers: it runs, evaluates, saves and resumes what a trainer supplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from axon_core.errors import AxonError, CheckpointError, ContractError, Interrupted, TrainingError
from axon_core.generation.compile import compiled_loss
from axon_core.processes import share, sum_tensors, world
from axon_core.randomness import Key, forked
from axon_core.training.callbacks.usual import usual_hooks
from axon_core.training.devices import to_device, works_apart
from axon_core.training.evaluation import report_progress_to
from axon_core.training.hooks import Hooks
from axon_core.training.optim import schedule
from axon_core.training.resuming import how_to_resume, opened_run
from axon_core.training.run_folder import RunFolder
from axon_core.training.signals import first_signal
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer
from axon_core.training.updates import Update, fetch, per

__all__ = ["Fit", "FitResult", "evaluate", "fit", "run_evaluation"]

T = TypeVar("T")
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
        UsageError: `out` is not empty and not to be resumed, or a package for `log` is not installed.
        CheckpointError: the checkpoint is damaged or does not fit, or the folder cannot be written to.
        TrainingError: the loss is no longer finite; on a GPU the models then hold what the failed step made of them.
        ContractError: the trainer's losses and counts have different names, or no loss has a gradient.
        Interrupted: by Ctrl-C or a request to terminate; all is saved.
    """
    hooks = usual_hooks(hooks, saved=out is not None, progress=progress, logs=trainer.config.log)
    _place(trainer)
    state = TrainState(trainer)
    end = min(stop_at or trainer.config.steps, trainer.config.steps)
    if out is None:
        return Fit(trainer, state, None, Hooks(hooks)).run_to(end)
    with opened_run(trainer, Path(out), resume, recipe, state) as run:
        return Fit(trainer, state, run, Hooks(hooks)).run_to(end)


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Return the trainer's own evaluation, see `run_evaluation`."""
    return run_evaluation(trainer, trainer.evaluate)


def run_evaluation(trainer: Trainer, measure: Callable[[], T]) -> T:
    """Return `measure()`, computed in evaluation mode, on the trainer's device, in its precision, without gradients."""
    _place(trainer)
    key = Key((trainer.config.seed, "evaluate"))
    with _resting(trainer), _autocast(trainer.config), key.seeded(trainer.config.device):
        return measure()


class Fit:
    """One training in progress, as hooks see it.

    Attributes:
        trainer: what is trained.
        state: weights, optimisers and counters; `state.step` steps are done.
        run: the run folder, if there is one.
        units: how many of the trainer's `unit` were trained on since this process began.
    """

    def __init__(self, trainer: Trainer, state: TrainState, run: RunFolder | None, hooks: Hooks) -> None:
        self.trainer, self.state, self.run = trainer, state, run
        self.units = 0.0
        self._hooks = hooks
        self._caught: list[int] = []
        self._ending: BaseException | None = None
        self._config = trainer.config
        self._loss = compiled_loss(trainer.loss) if trainer.config.compile else trainer.loss
        self._next: dict[str, Tensor] | None = None  # the batch of the next step, if it is built
        self._end = trainer.config.steps

    def run_to(self, end: int) -> FitResult:
        """Do the remaining steps up to `end`; see `fit`.

        Raises:
            CheckpointError: the run folder cannot be written to.
            TrainingError: the loss is no longer finite.
            ContractError: the trainer's losses and counts have different names, or no loss has a gradient.
            Interrupted: by Ctrl-C or a request to terminate; all is saved.
        """
        config, state = self._config, self.state
        self._end, self._next = end, None
        for role, model in self.trainer.models.items():
            model.train(self.trainer.training_mode and role in self.trainer.trainable)
            model.zero_grad(set_to_none=True)  # what an earlier backward pass may have left
        told = report_progress_to(partial(self._hooks.emit, "eval_progress", fit=self))
        with first_signal(self.run is not None) as caught, forked(config.device), self._reported(), told:
            self._caught = caught
            self._tell("fit_start")
            status = self._status(end)
            while status is None and self._ending is None:
                asked = self._tell("step_end", metrics=self._step())
                if state.step == config.steps or asked & {"eval", "stop"} or _due(state.step, config.eval_every):
                    self._check()
                    with self._rescued():
                        asked |= self._evaluate()
                status = self._status(end, stop="stop" in asked)
                if status is None and (caught or self._ending is not None):
                    status = "interrupted"
                regular = status in ("finished", "stopped") or "save" in asked or _due(state.step, config.save_every)
                if status or regular:
                    self._save(interim=not regular)
            # Also if nothing was left to do: the previous process may have been killed here.
            if self.run is not None and state.step:
                self.run.publish()
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
        if self.run is not None:
            self.run.check()
        key = Key((config.seed, step))
        with self._rescued():
            data, self._next = self._next or self._batch(step), None
            if not trainer.collects_ahead:
                data = self._collected(data, step)
        factor = schedule(
            config.schedule, step, steps=config.steps, warmup=config.warmup, final=config.final_lr_fraction
        )
        updates: list[Update] = []
        try:
            for number, minibatch in enumerate(trainer.minibatches(data, key("minibatches")), 1):
                updates.append(self._update(minibatch, key("update", number), factor))
        except Exception as error:
            self._check(error)  # weights that are not finite are the reason, whatever the error says
            raise
        self._build_ahead(step + 1)
        metrics: dict[str, float] = {}
        for measured in fetch(updates):
            self._check_measured(measured.metrics)
            self.units += measured.units
            for name, value in measured.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        self.state.step = step + 1
        metrics = {name: value / len(updates) for name, value in metrics.items()}
        return {**metrics, "learning_rate": self.state.optimizers[0].param_groups[0]["lr"]}

    def _batch(self, step: int) -> dict[str, Tensor]:
        """Return this process's examples of a step, on the device."""
        data = share(self.trainer.batch(step))
        if self.trainer.collects_ahead:
            data = self._collected(data, step)
        return {name: to_device(rows, self._config.device) for name, rows in data.items()}

    def _collected(self, data: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return what the step learns from."""
        if type(self.trainer).collect is Trainer.collect:
            return data
        key = Key((self._config.seed, step, "collect"))
        with _resting(self.trainer):
            key.seed_global()
            return self.trainer.collect(data, key)

    def _build_ahead(self, step: int) -> None:
        """Build the batch of the next step while the device still works on the updates of this one."""
        if step < self._end and works_apart(self._config.device):
            with suppress(Exception):  # it is asked for again in its own step, where the error belongs
                self._next = self._batch(step)

    def _update(self, data: dict[str, Tensor], key: Key, factor: float) -> Update:
        """Make one update from a mini-batch: minimise Σ sum_i / count_i, whatever the micro-batches."""
        counts = _summed(self.trainer.counts(data))
        sums: dict[str, Tensor] = {}
        minimised: dict[str, None] = {}
        for number, micro in enumerate(_cut(data, self._config.micro_batches)):
            key(number).seed_global()
            with _autocast(self._config):
                terms = self._loss(micro)
            if terms.keys() != counts.keys():
                raise ContractError(
                    f"{type(self.trainer).__name__}.loss and .counts must name the same terms, got "
                    f"{sorted(terms)} and {sorted(counts)}"
                )
            losses = {name: per(term, counts[name]) for name, term in terms.items() if term.requires_grad}
            if not losses:
                raise ContractError(f"no term of {type(self.trainer).__name__}.loss has a gradient")
            sum(losses.values(), torch.zeros(())).backward()
            minimised |= dict.fromkeys(losses)
            for name, term in terms.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        parameters = list(self.state.parameters.values())
        most = self._config.max_grad_norm
        norm = None if most is None else torch.nn.utils.clip_grad_norm_(parameters, most)
        update = Update(sums, counts, tuple(minimised), norm)
        if not works_apart(self._config.device):  # to look costs nothing, and the weights stay as they were
            self._check_measured(fetch([update])[0].metrics)
        self.state.update(factor)
        return update

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
        if self.run is not None:
            self.run.facts["evaluation"] = {"step": self.state.step, **metrics, **self.trainer.evaluation_facts()}
            self.run.write_facts()
        return self._tell("eval_end", metrics=metrics)

    def _check(self, cause: BaseException | None = None) -> None:
        """Raise `TrainingError` if a weight is not finite, or anything the optimiser or the average keeps for it."""
        if (name := self.state.not_finite()) is not None:
            raise TrainingError(self._diverged(f"{name} has a number that is not finite")) from cause

    def _save(self, interim: bool) -> None:
        """Write a checkpoint, if there is a folder; the weights are checked first in any case."""
        self._check()
        if self.run is None:
            return
        self.run.check()
        state = self.state.state_dict()
        try:
            with self.state.averaged():
                path = self.run.checkpoints.save(self.state.step, state, self.trainer.export, interim=interim)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._remedy()}") from error
        self._tell("saved", path=path)

    def _tell(self, event: str, **facts: Any) -> set[str]:
        """Tell the hooks of an event and return their requests; an error that ends training waits for the save."""
        try:
            return self._hooks.emit(event, fit=self, **facts)
        except (AxonError, SystemExit, KeyboardInterrupt) as error:
            if self._caught and isinstance(error, KeyboardInterrupt):
                raise  # the second request, to stop at once
            self._ending = error
            return set()

    @contextmanager
    def _rescued(self) -> Generator[None]:
        """If the block, between two steps, fails or is interrupted, save a checkpoint and re-raise."""
        try:
            yield
        except BaseException as error:
            if self._caught and isinstance(error, KeyboardInterrupt):
                raise  # the second request, to stop at once
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


def _place(trainer: Trainer) -> None:
    """Move the models to the trainer's device."""
    for model in trainer.models.values():
        model.to(trainer.config.device)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _summed(counts: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Return each count summed over all processes; with a single process nothing waits for the device."""
    if world() == 1:
        return counts
    return dict(zip(counts, sum_tensors([torch.as_tensor(count) for count in counts.values()]), strict=True))


def _cut(data: dict[str, Tensor], pieces: int) -> Generator[dict[str, Tensor]]:
    """Yield near-equal pieces of the rows of `data`, none of them empty."""
    size = len(next(iter(data.values())))
    if pieces == 1:
        yield data
        return
    for piece in zip(*(rows.tensor_split(min(pieces, size)) for rows in data.values()), strict=True):
        yield dict(zip(data, piece, strict=True))


def _autocast(config: Trainer.Config) -> torch.autocast:
    kind = torch.device(config.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16")


@contextmanager
def _resting(trainer: Trainer) -> Generator[None]:
    """Within the block all models are in evaluation mode, and no gradients are kept."""
    training = [model for model in trainer.models.values() if model.training]
    for model in training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model in training:
            model.train()
