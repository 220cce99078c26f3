"""The hook that writes a run's lock when it begins."""

from __future__ import annotations

from typing import Any

from axon_core.training import hook
from axon_lab.lock.writing import write_lock_at_start

__all__ = ["WritesLock"]


class WritesLock:
    """Writes `lock.json` into the run folder of each training, and observes nothing else."""

    @hook
    def fit_start(self, fit: Any) -> None:
        """Write the lock of a run that begins, or of one that is resumed with other software."""
        if fit.run is not None:
            write_lock_at_start(fit.run, fit.state.step)
