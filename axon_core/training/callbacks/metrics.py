"""The hook that writes `metrics.jsonl`."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from axon_core.checkpoint.atomic import writing
from axon_core.json_text import to_json
from axon_core.training.callbacks.log import Log
from axon_core.training.hooks import FitView, HookRequest, hook

__all__ = ["MetricsFile"]

_log = logging.getLogger("axon")


class MetricsFile(Log):
    """Appends every number to the run's `metrics.jsonl`, one `{"step", "split", "name", "value"}` a line.

    If the file can no longer be written, as on a full disk, it asks for a checkpoint, and training continues without.
    """

    def __init__(self) -> None:
        self._file: int | None = None

    @hook
    def fit_start(self, fit: FitView) -> None:
        """Open the file."""
        if fit.run is not None:
            with writing(fit.run.metrics):
                # Unbuffered, so that a kill after the next checkpoint loses no line before it.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.open(fit.run.metrics, flags, 0o666)

    @hook
    def saved(self) -> None:
        """Flush the file to disk."""
        if self._file is not None:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._give_up(error)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> HookRequest:
        """Append a line for each number; if that fails, ask for a checkpoint."""
        if self._file is None:
            return None
        lines = ({"step": step, "split": split, "name": name, "value": metrics[name]} for name in metrics)
        data = "".join(to_json(line) + "\n" for line in lines).encode()
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, size)  # leave no partial line, which another process would append to
            self._give_up(error)
            return "save"
        return None

    def _give_up(self, error: OSError) -> None:
        _log.warning("metrics.jsonl cannot be written (%s): training continues without metrics", error.strerror)
        self.close(failed=False)

    def close(self, failed: bool) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.close(file)
