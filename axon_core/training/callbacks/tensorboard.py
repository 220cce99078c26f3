"""The hook that writes the numbers of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axon_core.errors import UsageError
from axon_core.registry.optional import import_optional
from axon_core.training.callbacks.log import Log
from axon_core.training.hooks import FitView, hook

__all__ = ["TensorBoard"]


class TensorBoard(Log):
    """Writes every number as a scalar, `train/loss` or `held_out/loss`, into `tensorboard/` in the run folder.

    A resumed run continues its log; what came after the checkpoint is replaced. View it with
    `tensorboard --logdir runs`.

    Args:
        folder: where to write; by default in the run folder.

    Raises:
        UsageError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        import_optional("tensorboard", "tensorboard")
        self._writers = import_optional("torch.utils.tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    @hook
    def fit_start(self, fit: FitView) -> None:
        """Open an event file. Raises `UsageError` if there is no folder for it."""
        if self._folder is not None:
            folder = Path(self._folder)
        elif fit.run is not None:
            folder = fit.run.path / "tensorboard"
        else:
            raise UsageError("TensorBoard needs a folder: give one to `fit` or to TensorBoard")
        self._writer = self._writers.SummaryWriter(folder, purge_step=fit.state.step + 1 if fit.state.step else None)

    @hook
    def saved(self) -> None:
        """Flush the file, so that a kill loses no number before the checkpoint."""
        if self._writer is not None:
            self._writer.flush()

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Write a scalar for each number."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self, failed: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
