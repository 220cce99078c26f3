"""Curves of a run's numbers in one picture, for the hooks of plugins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axon_core.checkpoint.atomic import atomic_file
from axon_core.errors import CheckpointError
from axon_core.registry.optional import new_figure
from axon_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "save_figure"]

_log = logging.getLogger("axon")


def draw_curves(run: RunFolder, panels: Mapping[str, Sequence[str]], file: str) -> None:
    """Draw the numbers in a run's metrics file over the steps, as the picture `file` in its folder.

    Numbers measured on held-out data are dotted. Without matplotlib nothing is drawn; the loss plot says so.

    Args:
        run: the run.
        panels: the title of each panel, and the names of its numbers; those that the run does not have are left out.
        file: the picture's name.
    """
    if (figure := new_figure()) is None:
        return
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in run.read_metrics():
        points.setdefault((line["name"], line["split"]), []).append((line["step"], line["value"]))
    styles = {"train": "-", "held_out": "o:"}
    drawn = {title: [(n, s) for n in names for s in styles if (n, s) in points] for title, names in panels.items()}
    drawn = {title: curves for title, curves in drawn.items() if curves}
    rows = max(1, -(-len(drawn) // 2))
    figure.set_size_inches(10, 3 * rows)
    for at, (title, curves) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(rows, 2, at, xlabel="step", title=title)
        for name, split in curves:
            steps, values = zip(*points[name, split], strict=True)
            label = name if split == "train" else f"{name}, held out"
            axes.plot(steps, values, styles[split], linewidth=1, markersize=4, label=label)
        axes.legend(fontsize="small")
        axes.locator_params("x", integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    save_figure(figure, run.path / file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a matplotlib figure; if the file cannot be written, say so and continue: training does not depend on it."""
    try:
        with atomic_file(file) as draft:
            figure.savefig(draft, dpi=120)
    except CheckpointError as error:
        _log.warning("no picture is drawn: %s", error)
