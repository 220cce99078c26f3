"""The hook that shows what a `ddpm` training paints: grids of samples in the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.hooks import hook

if TYPE_CHECKING:
    from axon_core.loop import Fit

__all__ = ["Grids"]


class Grids:
    """Writes `samples/step-<n>.png` every `grid_every` steps and at the end, by the averaged weights if there are any.

    All grids of a run begin with the same noise, so that they show the same pictures growing better.
    """

    @hook
    def step_end(self, fit: Fit) -> None:
        """Write a grid, if it is time to."""
        from axon_ddpm.trainer import DDPMTrainer  # this hook hears of every training, and most are others'

        trainer, step = fit.trainer, fit.state.step
        if fit.run is None or not isinstance(trainer, DDPMTrainer):
            return
        every = trainer.config.grid_every
        if step == trainer.config.steps or (every is not None and step % every == 0):
            from axon_core.loop import evaluation
            from axon_ddpm.pictures import grid, save_png

            with fit.state.averaged():
                pictures = evaluation(trainer, lambda: trainer.pictures(trainer.config.grid))
            save_png(grid(pictures), fit.run.path / "samples" / f"step-{step}.png")
