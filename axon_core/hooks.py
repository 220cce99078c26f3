"""Events of a training, as pluggy hooks: progress, files, plots, and whatever an installed plugin adds.

A hook is any object with methods of `Events`' names, each marked `@hook` and taking those of the arguments it wants. A
plugin offers one through the entry-point group `axon.v1.hooks`: a class, of which an instance is made.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from axon_core import discovery
from axon_core.errors import AxonError

if TYPE_CHECKING:
    from axon_core.loop import Fit

__all__ = ["Events", "Hooks", "Request", "hook"]

Request = Literal["save", "eval", "stop"] | None

_spec = pluggy.HookspecMarker("axon")
hook = pluggy.HookimplMarker("axon")
"""Marks a method as an answer to the event of its name."""

_log = logging.getLogger("axon")


class Events:
    """The events. Hooks observe: they may ask for an evaluation, a checkpoint or the end, and never change numbers."""

    @_spec
    def fit_start(self, fit: Fit) -> None:
        """Training begins or resumes; `fit.state.step` says where."""

    @_spec
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> Request:
        """A step is done; `metrics` has its losses, gradient norm and learning rate. May return a request."""

    @_spec
    def eval_progress(self, fit: Fit, done: int, total: int, doing: str) -> None:
        """An evaluation has come so far in what `doing` names, for trainers that say it (`axon_core.evaluating`)."""

    @_spec
    def eval_end(self, fit: Fit, metrics: dict[str, float]) -> Request:
        """An evaluation is done. May return a request."""

    @_spec
    def saved(self, fit: Fit, path: Path) -> None:
        """A checkpoint is complete on disk."""

    @_spec
    def error(self, fit: Fit, error: BaseException) -> None:
        """Training breaks off, also when it is interrupted."""

    @_spec
    def fit_end(self, fit: Fit) -> None:
        """Training has come to its end, early or not."""


class Hooks:
    """The hooks of one training.

    One that fails is reported and switched off, and training goes on; only an `AxonError` ends it.

    Args:
        given: hook objects; those of installed plugins are added.
    """

    def __init__(self, given: Iterable[object] = ()) -> None:
        self._manager = pluggy.PluginManager("axon")
        self._manager.add_hookspecs(Events)
        for entry in discovery.discover().entries("hooks"):
            try:
                found = entry.load()
                self._add(found() if inspect.isclass(found) else found)
            except Exception as error:  # a plugin's fault, and training can do without it
                _log.warning("the hook %s of %s is left out: %s", entry.key, entry.source, error)
        for plugin in given:
            self._add(plugin)

    def _add(self, plugin: object) -> None:
        self._manager.register(plugin)
        self._manager.check_pending()  # a misspelt event is an error

    def emit(self, event: str, **facts: Any) -> set[str]:
        """Tell every hook of an event, in the order they were registered; return what they ask for."""
        # Not pluggy's own call: its first exception would keep the event from all other hooks.
        requests: set[str] = set()
        for implementation in getattr(self._manager.hook, event).get_hookimpls():
            try:
                answer = implementation.function(*(facts[name] for name in implementation.argnames))
                if answer not in (None, "save", "eval", "stop"):
                    raise ValueError(f"a hook may return 'save', 'eval', 'stop' or nothing, got {answer!r}")
            except AxonError:
                raise  # what the core's own hooks cannot write must not get lost
            except Exception as error:
                plugin = implementation.plugin
                self._manager.unregister(plugin)
                name = getattr(plugin, "__name__", type(plugin).__name__)
                _log.warning("hook %s failed at %s and is switched off, training goes on: %r", name, event, error)
            else:
                if answer is not None:
                    requests.add(answer)
        return requests
