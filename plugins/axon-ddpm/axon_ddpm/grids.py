"""The hook that shows what a `ddpm` run paints: grids of samples in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from axon_core import from_first, is_first
from axon_core.training import hook

if TYPE_CHECKING:
    from axon_core.training import Fit
    from axon_ddpm.trainer import DDPMTrainer

__all__ = ["Grids"]


class Grids:
    """Writes grids of samples, drawn with the averaged weights if there are any, into `samples/` of the run folder.

    `step-<n>.png` is written every `grid_every` steps and at the end, early or not. All grids of a run start from the
    same noise, so they show the same pictures improving. `nearest-<n>.png` is written with an evaluation that compares
    samples with the data: each sample has the nearest training picture to its right. Below a sample is the name of the
    class it was asked for.
    """

    every_process = True  # for the model may be divided among them

    @hook
    def step_end(self, fit: Fit) -> None:
        """Write a grid, if one is due."""
        if found := _found(fit):
            trainer, folder = found
            every = trainer.config.grid_every
            if every is not None and fit.state.step % every == 0:
                _paint(fit, trainer, folder)

    @hook
    def eval_end(self, fit: Fit) -> None:
        """Write the samples that were compared, each beside the nearest training picture."""
        from axon_ddpm.pictures import grid, save_png

        if (found := _found(fit)) and (beside := found[0].beside) is not None:
            pictures, captions = beside
            if is_first():
                save_png(grid(pictures, together=2, captions=captions), found[1] / f"nearest-{fit.state.step}.png")

    @hook
    def fit_end(self, fit: Fit) -> None:
        """Write the last grid, if the last step has none yet."""
        found = _found(fit)
        if found and from_first(is_first() and not (found[1] / f"step-{fit.state.step}.png").exists()):
            _paint(fit, *found)


def _found(fit: Fit) -> tuple[DDPMTrainer, Path] | None:
    """Return the trainer and the folder of its grids; None if it is another trainer, or writes no files."""
    from axon_ddpm.trainer import DDPMTrainer  # this hook runs in every training, most of them not ours

    if fit.run is None or not isinstance(fit.trainer, DDPMTrainer):
        return None
    return fit.trainer, fit.run.path / "samples"


def _paint(fit: Fit, trainer: DDPMTrainer, folder: Path) -> None:
    from axon_core.training import run_evaluation
    from axon_ddpm.pictures import grid, save_png

    with fit.state.averaged():
        pictures = run_evaluation(trainer, lambda: trainer.pictures(trainer.config.grid))
    if is_first():
        save_png(grid(pictures, captions=trainer.captions(len(pictures))), folder / f"step-{fit.state.step}.png")
