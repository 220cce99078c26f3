"""The hook that draws the curves of preference optimisation: rewards, margins, accuracy, log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.training import draw_curves, hook

if TYPE_CHECKING:
    from axon_core.training import Fit

__all__ = ["Curves"]

_PANELS = {
    "rewards, nats": ("rewards/chosen", "rewards/rejected"),
    "margin, nats": ("rewards/margins",),
    "comparisons in the right order": ("rewards/accuracies",),
    "log-probability of a text, nats": ("logps/chosen", "logps/rejected"),
}


class Curves:
    """Draws `dpo.png` in the run folder when a `dpo` run ends; needs matplotlib."""

    @hook
    def fit_end(self, fit: Fit) -> None:
        """Draw the curves from the numbers in the metrics file."""
        from axon_dpo.trainer import DPOTrainer  # this hook runs in every training, most of them not ours

        if fit.run is not None and isinstance(fit.trainer, DPOTrainer):
            draw_curves(fit.run, _PANELS, "dpo.png")
