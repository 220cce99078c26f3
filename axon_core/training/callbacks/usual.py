"""The hooks that every training has."""

from __future__ import annotations

from collections.abc import Iterable

from axon_core.training.callbacks.metrics import MetricsFile
from axon_core.training.callbacks.plot import LossPlot
from axon_core.training.callbacks.progress import Progress
from axon_core.training.callbacks.tensorboard import TensorBoard
from axon_core.training.callbacks.wandb import Wandb

__all__ = ["LOGS", "usual_hooks"]

LOGS = {"tensorboard": TensorBoard, "wandb": Wandb}
"""The logs that a trainer's config may name."""


def usual_hooks(given: Iterable[object], *, saved: bool, progress: bool, logs: Iterable[str]) -> tuple[object, ...]:
    """Return the hooks of a training, in the order in which they are called for an event.

    Args:
        given: the caller's own; a `Progress` among them replaces the usual one.
        saved: whether there is a run folder, which gets the numbers and their plot.
        progress: whether to show progress.
        logs: names of `LOGS`; a hook of the same kind in `given` replaces it.

    Raises:
        UsageError: the package that a log needs is not installed.
    """
    given = tuple(given)
    kinds = [*[Progress] * progress, *(LOGS[name] for name in dict.fromkeys(logs))]
    added = [kind() for kind in kinds if not any(isinstance(hook, kind) for hook in given)]
    return (*[MetricsFile()] * saved, *added, *given, *[LossPlot()] * saved)
