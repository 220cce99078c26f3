"""What a training leaves to look at: learning curves with bands, estimates against the truth, an episode as a GIF."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from axon_advise.learning import Learners, shaped_logits
from axon_core import CheckpointError, to_json
from axon_core.checkpoint import atomic_file, write_text
from axon_core.registry import new_figure
from axon_core.training import hook

if TYPE_CHECKING:
    from pathlib import Path

    from axon_advise.tabular import TabularEnvironment
    from axon_advise.trainer import AdviseTrainer
    from axon_core.training import Fit

__all__ = ["AdvicePictures", "animate_episode", "draw_advice", "play_policy"]

_log = logging.getLogger("axon")
_CELL = 24
_COLOURS = {"#": "#34495e", "*": "#e67e22", "P": "#f1c40f", "G": "#c0392b", "A": "#2980b9", "x": "#27ae60"}


class AdvicePictures:
    """Writes `advise.png`, `advise.gif` and `trainers.json` into the run folder when an `advise` run ends.

    The first needs matplotlib, the second Pillow; what is not installed is left out.
    """

    @hook
    def fit_end(self, fit: Fit) -> None:
        """Write them from the trainer's history and tables."""
        from axon_advise.trainer import AdviseTrainer  # this hook runs in every training, most of them not ours

        if fit.run is None or not isinstance(trainer := fit.trainer, AdviseTrainer):
            return
        try:
            reports = {name: report.model_dump(mode="json") for name, report in trainer.reports().items()}
            write_text(fit.run.path / "trainers.json", to_json(reports, indent=2) + "\n")
            draw_advice(trainer, fit.run.path / "advise.png")
            animate_episode(trainer, fit.run.path / "advise.gif")
        except CheckpointError as error:
            _log.warning("no picture is drawn: %s", error)


def draw_advice(trainer: AdviseTrainer, file: Path) -> None:
    """Draw the returns of each set over the episodes, and each trainer's estimated consistency beside the true one.

    Bands are one standard deviation over learners. Raises `CheckpointError` if the file cannot be written.
    """
    if (figure := new_figure(11, 4.5)) is None or not trainer.history["returns"]:
        return
    returns = np.stack([row.numpy() for row in trainer.history["returns"]])
    estimates = np.stack([row.numpy() for row in trainer.history["consistency"]])
    episodes = trainer.config.episodes * np.arange(1, len(returns) + 1)
    left = figure.add_subplot(1, 2, 1, xlabel="episode", ylabel="return", title="return by set of trainers")
    for name in trainer.sets:
        _band(left, episodes, returns[:, trainer.rows(name)], name)
    left.legend(fontsize="small")
    name = max(trainer.sets, key=lambda key: len(trainer.feedback[key]))
    right = figure.add_subplot(1, 2, 2, xlabel="episode", ylabel="C", ylim=(0, 1), title=f"reliabilities of {name}")
    for m, truth in enumerate(trainer.truth(name, int(episodes[-1]))):
        _band(right, episodes, estimates[:, trainer.rows(name), m], f"trainer {m + 1}")
        if truth is not None:
            right.axhline(truth, color=f"C{m % 10}", linestyle=":", linewidth=1)
    if trainer.feedback[name]:
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(file) as draft:
        figure.savefig(draft, dpi=120, format="png")


def _band(axes: Any, x: np.ndarray, rows: np.ndarray, label: str) -> None:
    mean, spread = rows.mean(1), rows.std(1)
    (line,) = axes.plot(x, mean, linewidth=1.2, label=label)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)


def play_policy(env: TabularEnvironment, policy: np.ndarray, seed: int, limit: int) -> list[int]:
    """Return the states of an episode of a deterministic policy, the first one included."""
    rng, table = np.random.default_rng(seed), env.table
    states = [int(rng.choice(len(env.start), p=env.start))]
    for _ in range(limit):
        at = states[-1], int(policy[states[-1]])
        k = int(rng.choice(table.following.shape[2], p=table.probability[at]))
        if table.terminated[*at, k]:
            break
        states.append(int(table.following[*at, k]))
    return states


def animate_episode(trainer: AdviseTrainer, file: Path, limit: int = 200) -> None:
    """Write an episode of the most likely actions of a learner of the best set as a GIF; its end is not drawn.

    Raises `CheckpointError` if the file cannot be written. Without Pillow nothing is written.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return
    row = best_learner(trainer)
    states = play_policy(trainer.environment, greedy(trainer, row), trainer.config.seed, limit)
    frames = list[Any]()
    for state in states:
        lines = trainer.environment.draw(state).split("\n")
        image = Image.new("RGB", (_CELL * max(map(len, lines)), _CELL * len(lines)), "#ecf0f1")
        pen = ImageDraw.Draw(image)
        for y, line in enumerate(lines):
            for x, mark in enumerate(line):
                box = (_CELL * x, _CELL * y, _CELL * (x + 1) - 1, _CELL * (y + 1) - 1)
                if mark in _COLOURS:
                    inset = 0 if mark == "#" else 8 if mark in "*x" else 3
                    shape = pen.rectangle if mark == "#" else pen.ellipse
                    shape((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), fill=_COLOURS[mark])
                elif mark not in " .":
                    pen.text((box[0] + 8, box[1] + 6), mark, fill="#2c3e50")
        frames.append(image)
    with atomic_file(file) as draft:
        frames[0].save(draft, format="GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)


def best_learner(trainer: AdviseTrainer) -> int:
    """Return the first learner of the set with the highest returns in the last tenth of the training."""
    history = trainer.history["returns"]
    if not history:
        return 0
    last = np.stack([row.numpy() for row in history[-max(1, len(history) // 10) :]])
    return max((trainer.rows(name) for name in trainer.sets), key=lambda rows: float(last[:, rows].mean())).start


def greedy(trainer: AdviseTrainer, row: int) -> np.ndarray:
    """Return a learner's most likely action in each state."""
    learners: Learners = trainer.learners()
    return shaped_logits(learners.q[row], learners.scores[row], trainer.settings).argmax(1)
