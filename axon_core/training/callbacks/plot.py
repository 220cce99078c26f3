"""The hook that draws `loss.png`."""

from __future__ import annotations

import logging

from axon_core.escaping import printable
from axon_core.registry.optional import new_figure
from axon_core.registry.suggest import install_line
from axon_core.training.callbacks.curves import save_figure
from axon_core.training.hooks import FitView, hook

__all__ = ["LossPlot"]

_log = logging.getLogger("axon")


class LossPlot:
    """Draws the training and held-out loss over the steps when training ends; needs matplotlib."""

    @hook
    def fit_end(self, fit: FitView) -> None:
        """Draw, from the numbers in the metrics file."""
        if fit.run is None:
            return
        if (figure := new_figure(7, 4)) is None:
            _log.warning("no loss plot: matplotlib is not installed (%s)", install_line("axon-core", "plot"))
            return
        axes = figure.add_subplot(xlabel="step", ylabel="loss")
        axes.set_title(printable(fit.run.path.name, line=True), parse_math=False)
        lines = [line for line in fit.run.read_metrics() if line["name"] == "loss"]
        for split, marker in (("train", ""), ("held_out", "o")):
            points = [(line["step"], line["value"]) for line in lines if line["split"] == split]
            steps, losses = [step for step, _ in points], [loss for _, loss in points]
            axes.plot(steps, losses, marker=marker, linewidth=1, label=split.replace("_", " "))
        axes.legend()
        axes.locator_params("x", integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        save_figure(figure, fit.run.plot)
