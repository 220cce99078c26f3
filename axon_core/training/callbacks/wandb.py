"""The hook that logs a training to Weights & Biases."""

from __future__ import annotations

import os
import secrets
from typing import Any

from axon_core.registry.optional import import_optional
from axon_core.training.callbacks.log import Log
from axon_core.training.hooks import FitView, hook

__all__ = ["Wandb"]

_KEY = "wandb"  # the field of `run.json` with the id under which a resumed run continues


class Wandb(Log):
    """Logs every number to Weights & Biases, as `train/loss` or `held_out/loss`.

    By default it is offline: it writes to `wandb/` in the run folder, which `wandb sync` uploads. The environment takes
    precedence (`WANDB_MODE=online`). A resumed run keeps the id of the run that it continues.

    Args:
        project: the project; by default what `WANDB_PROJECT` says, or `axon`.

    Raises:
        UsageError: the package `wandb` is not installed.
    """

    def __init__(self, project: str | None = None) -> None:
        self._wandb = import_optional("wandb", "wandb")
        self._project = project or os.environ.get("WANDB_PROJECT") or "axon"
        self._logged: Any = None

    @hook
    def fit_start(self, fit: FitView) -> None:
        """Begin a run, or continue it."""
        options: dict[str, Any] = {}
        if fit.run is not None:
            if _KEY not in fit.run.facts:
                fit.run.facts[_KEY] = secrets.token_hex(8)
                fit.run.write_facts()
            options = {"id": fit.run.facts[_KEY], "dir": str(fit.run.path), "name": fit.run.path.name}
            options["config"] = {name: fit.run.facts.get(name) for name in ("recipe", "trainer", "models")}
        mode = None if os.environ.get("WANDB_MODE") else "offline"
        self._logged = self._wandb.init(project=self._project, mode=mode, resume="allow", **options)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log the numbers."""
        self._logged.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    def close(self, failed: bool) -> None:
        """End the run, as failed or not."""
        if self._logged is not None:
            self._logged.finish(exit_code=int(failed))
            self._logged = None
