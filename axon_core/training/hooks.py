"""Events of a training, as pluggy hooks: progress, files, plots, and whatever an installed plugin adds.

A hook is any object with methods named after events of `Events`, each marked `@hook` and taking only the arguments it
wants. A plugin offers one through the entry-point group `axon.v1.hooks`: a class, which is instantiated.

Of several processes only the first runs hooks. One that computes with the models, which may be divided among all, says
so by an attribute `every_process = True`: it runs in all of them, and writes only if `is_first()`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import pluggy

from axon_core.errors import AxonError
from axon_core.processes import is_first
from axon_core.registry import discovery
from axon_core.training.run_folder import RunFolder
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer

__all__ = ["Events", "FitView", "HookRequest", "Hooks", "hook"]

HookRequest = Literal["save", "eval", "stop"] | None

_spec = pluggy.HookspecMarker("axon")
hook = pluggy.HookimplMarker("axon")
"""Marks a method as an answer to the event of its name."""

_log = logging.getLogger("axon")


class FitView(Protocol):
    """What a hook sees of a training in progress."""

    @property
    def trainer(self) -> Trainer:
        """What is trained."""
        ...

    @property
    def state(self) -> TrainState:
        """Weights, optimisers and counters; `state.step` steps are done."""
        ...

    @property
    def run(self) -> RunFolder | None:
        """The run folder, if there is one."""
        ...

    @property
    def units(self) -> float:
        """How many of the trainer's `unit` were trained on since this process began."""
        ...


class Events:
    """The events. Hooks observe: they may ask for an evaluation, a checkpoint or the end, but never change numbers."""

    @_spec
    def fit_start(self, fit: FitView) -> None:
        """Training begins or resumes; `fit.state.step` says where."""

    @_spec
    def step_end(self, fit: FitView, metrics: dict[str, float]) -> HookRequest:
        """A step is done; `metrics` has its losses, gradient norm and learning rate. May return a request."""

    @_spec
    def eval_progress(self, fit: FitView, done: int, total: int, doing: str) -> None:
        """An evaluation has progressed in what `doing` names, for trainers that report it (`training.evaluation`)."""

    @_spec
    def eval_end(self, fit: FitView, metrics: dict[str, float]) -> HookRequest:
        """An evaluation is done. May return a request."""

    @_spec
    def saved(self, fit: FitView, path: Path) -> None:
        """A checkpoint is complete on disk."""

    @_spec
    def error(self, fit: FitView, error: BaseException) -> None:
        """Training ends with an error, or is interrupted."""

    @_spec
    def fit_end(self, fit: FitView) -> None:
        """Training has ended, early or not."""


class Hooks:
    """The hooks of one training, run by pluggy in the order given; `tryfirst`, `trylast` and wrappers work.

    A hook that fails is reported and switched off, and training continues; only an `AxonError` ends it.

    Args:
        given: hook objects; those of installed plugins come first, and logs before all, as a hook may end the training.
    """

    def __init__(self, given: Iterable[object] = ()) -> None:
        self._manager = pluggy.PluginManager("axon")
        self._manager.add_hookspecs(Events)
        offered = list[object]()
        for entry in discovery.discover().entries("hooks"):
            try:
                found = entry.load()
                self._add(made := found() if inspect.isclass(found) else found)
                self._manager.unregister(made)
                offered.append(made)
            except Exception as error:  # a plugin's fault, and training can do without it
                _log.warning("the hook %s of %s is left out: %s", entry.key, entry.source, error)
        for plugin in reversed([*offered, *given]):  # pluggy calls the one registered last first
            if is_first() or getattr(plugin, "every_process", False):
                self._add(plugin)

    def _add(self, plugin: object) -> None:
        self._manager.register(plugin)
        self._manager.check_pending()  # a misspelt event is an error
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and not implementation.hookwrapper:
                    guard = self._guarded_wrapper if implementation.wrapper else self._guarded
                    implementation.function = guard(plugin, caller.name, implementation.function)  # pyright: ignore[reportAttributeAccessIssue]  pluggy has no other place

    def emit(self, event: str, **facts: Any) -> set[str]:
        """Tell every hook of an event; return what they ask for."""
        return set(getattr(self._manager.hook, event)(**facts))

    # Without these guards, the first exception would keep the event from all other hooks.
    def _guarded(self, plugin: object, event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*facts: Any) -> Any:
            try:
                return _checked(function(*facts))
            except AxonError:
                raise  # what the core's own hooks cannot write must not get lost
            except Exception as error:
                return self._switch_off(plugin, event, error)

        return guarded

    def _guarded_wrapper(self, plugin: object, event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*facts: Any) -> Generator[None, list[Any], list[Any]]:
            running = function(*facts)
            try:
                next(running)
            except AxonError:
                raise
            except Exception as error:
                self._switch_off(plugin, event, error)
                return (yield)
            try:
                answers = yield
            except BaseException as error:  # of a hook inside, which ends training
                running.throw(error)
                raise
            try:
                return _finished(running, answers)
            except AxonError:
                raise
            except Exception as error:
                self._switch_off(plugin, event, error)
                return answers

        return guarded

    def _switch_off(self, plugin: object, event: str, error: Exception) -> None:
        self._manager.unregister(plugin)
        name = getattr(plugin, "__name__", type(plugin).__name__)
        _log.warning("hook %s failed at %s and is switched off; training continues: %r", name, event, error)


def _checked(answer: Any) -> Any:
    if answer not in (None, "save", "eval", "stop"):
        raise ValueError(f"a hook must return 'save', 'eval', 'stop' or nothing, got {answer!r}")
    return answer


def _finished(running: Generator[None, list[Any], list[Any]], answers: list[Any]) -> list[Any]:
    """Hand the answers of the hooks inside to a wrapper, and return what it makes of them."""
    try:
        running.send(answers)
    except StopIteration as end:
        return [_checked(answer) for answer in end.value]
    raise ValueError("a wrapper must yield exactly once")
