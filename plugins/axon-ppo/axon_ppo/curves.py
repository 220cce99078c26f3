"""The hook that draws what users of proximal policy optimisation look at: reward, divergence, length, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.hooks import hook

if TYPE_CHECKING:
    from axon_core.loop import Fit

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
    """Draws `ppo.png` in the run folder when a training of `ppo` or `ppo_control` ends; needs matplotlib."""

    @hook
    def fit_end(self, fit: Fit) -> None:
        """Draw, from the numbers in the metrics file."""
        from axon_ppo.base import PPOBase  # this hook hears of every training, and most are others'

        if fit.run is None or not isinstance(fit.trainer, PPOBase):
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return  # the core's own plot has said so
        points: dict[str, list[tuple[int, float]]] = {}
        for line in fit.run.read_metrics():
            if line["split"] == "train":
                points.setdefault(line["name"], []).append((line["step"], line["value"]))
        panels = {title: [name for name in names if name in points] for title, names in _PANELS.items()}
        panels = {title: names for title, names in panels.items() if names}
        figure = Figure(figsize=(10, 3 * -(-len(panels) // 2)), layout="constrained")
        for at, (title, names) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(-(-len(panels) // 2), 2, at, xlabel="step", title=title)
            for name in names:
                axes.plot(*zip(*points[name], strict=True), linewidth=1, label=name)
            axes.legend(fontsize="small")
            axes.grid(alpha=0.3)
        figure.savefig(fit.run.path / "ppo.png", dpi=120)
