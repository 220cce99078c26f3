"""The hooks that every training has."""

from __future__ import annotations

from collections.abc import Iterable

from axon_core.callbacks.metrics import MetricsFile
from axon_core.callbacks.plot import LossPlot
from axon_core.callbacks.progress import Progress
from axon_core.distributed import is_first

__all__ = ["usual_hooks"]


def usual_hooks(given: Iterable[object], *, saved: bool, progress: bool) -> tuple[object, ...]:
    """Return the hooks of a training, in the order in which they are told of an event.

    Args:
        given: the caller's own; a `Progress` among them takes the place of the usual one.
        saved: whether there is a run folder, which gets the numbers and their plot.
        progress: whether to show how far it has come; of several processes, the first one does.
    """
    given = tuple(given)
    shown = [Progress()] if progress and is_first() and not any(isinstance(hook, Progress) for hook in given) else []
    return (*[MetricsFile()] * saved, *shown, *given, *[LossPlot()] * saved)
