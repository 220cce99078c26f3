"""The hook that writes `metrics.jsonl`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from axon_core.hooks import hook
from axon_core.json_text import to_json
from axon_core.storage import writing

if TYPE_CHECKING:
    from axon_core.loop import Fit

__all__ = ["MetricsFile"]


class MetricsFile:
    """Appends every number to the run's `metrics.jsonl`, one `{"step", "split", "name", "value"}` a line."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    @hook
    def fit_start(self, fit: Fit) -> None:
        """Open the file."""
        if fit.run is not None:
            with writing(fit.run.metrics):
                self._file = fit.run.metrics.open("a", encoding="utf-8")

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Write the numbers of a step."""
        self._write(fit.state.step, "train", metrics)

    @hook
    def eval_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Write the numbers of an evaluation."""
        self._write(fit.state.step, "held_out", metrics)

    @hook
    def saved(self) -> None:
        """Have the system write the file to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    @hook
    def error(self) -> None:
        """Close the file."""
        self._close()

    @hook
    def fit_end(self) -> None:
        """Close the file."""
        self._close()

    def _write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if self._file is None:
            return
        with writing(Path(self._file.name)):
            lines = ({"step": step, "split": split, "name": name, "value": metrics[name]} for name in metrics)
            self._file.write("".join(to_json(line) + "\n" for line in lines))
            self._file.flush()  # so that a kill after the next checkpoint loses no line before it

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):  # on a full disk; the write itself has been reported
                file.close()
