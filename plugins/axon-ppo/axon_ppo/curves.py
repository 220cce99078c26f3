"""The hook that draws the curves of proximal policy optimisation: reward, divergence, length, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.training import draw_curves, hook

if TYPE_CHECKING:
    from axon_core.training import Fit

__all__ = ["Curves"]

_PANELS = {
    "reward": ("objective/scores", "objective/rlhf_reward", "objective/return"),
    "KL from the reference, nats": ("objective/kl",),
    "tokens in a response": ("objective/length",),
    "clipped": ("policy/clipfrac_avg", "val/clipfrac_avg"),
    "entropy, nats an action": ("policy/entropy_avg",),
    "value loss": ("loss/value_avg",),
}


class Curves:
    """Draws `ppo.png` in the run folder when a `ppo` or `ppo_control` run ends; needs matplotlib."""

    @hook
    def fit_end(self, fit: Fit) -> None:
        """Draw the curves from the numbers in the metrics file."""
        from axon_ppo.base import PPOBase  # this hook runs in every training, most of them not ours

        if fit.run is not None and isinstance(fit.trainer, PPOBase):
            draw_curves(fit.run, _PANELS, "ppo.png")
