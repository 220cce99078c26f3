"""Episodes per second of learning from several trainers: Axon beside the loop of the paper's authors.

    pip install -c constraints.txt -e . -e plugins/axon-advise scipy
    git clone https://github.com/takuyamagata/RL-multiple-human-feedback AUTHORS   # runs at cafb8cc
    python benchmarks/advise.py --authors AUTHORS --save

Both play the small Pac-Man with eight trainers (C .9 … .2, L .2), estimate reliabilities by expectation maximisation
after every tenth episode, and are timed over the first episodes of a trial, on one thread, in turns. The authors'
oracle reads a pickle; here its values come from value iteration instead, so that nothing is unpickled, and their
results are not written. The naive loop of the plugin's tests is timed too: it knows the reliabilities, so that it
estimates nothing and its episodes are shorter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.record import facts, save, say

from axon_advise.learning import LearningSettings
from axon_advise.pacman import PacMan
from axon_advise.tabular import value_iteration
from axon_core import Key
from axon_core.training import Recipe, build_trainer

TRUTH = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
SPEAKS = 0.2
EVERY = 10
TESTS = Path(__file__).parents[1] / "plugins" / "axon-advise" / "tests"


def axon(episodes: int, learners: int) -> Callable[[], int]:
    """Return a function that plays the episodes and returns how many there were."""
    trainers = [{"type": "oracle", "right": c, "speaks": SPEAKS} for c in TRUTH]
    tables = {
        "data": {"environment": {"type": "pacman"}, "sets": {"eight": {"trainers": trainers}}},
        "trainer": {"type": "advise", "batch_size": learners, "steps": episodes // EVERY, "episodes": EVERY},
    }

    def run() -> int:
        trainer: Any = build_trainer(Recipe.of(tables, "benchmark", "benchmark"))
        for step in range(episodes // EVERY):
            trainer.update(trainer.batch(step), Key((0, step)))
        return learners * episodes

    return run


def authors(folder: Path, episodes: int) -> Callable[[], int]:
    """Return the same of the authors' loop, one trial."""
    sys.path.insert(0, str(folder))
    main, agent = (importlib.import_module(name) for name in ("main_oracle", "agent"))
    monitor = importlib.import_module("RLmon")
    env = PacMan(PacMan.Config())
    values = np.zeros((10_000, 4))
    ghost, heading, man, left = np.unravel_index(env._numbers, env._sizes)  # their numbers count walls too
    cells = np.array([y * 5 + x for y, x in env._cells])
    values[cells[ghost] + 25 * heading + 100 * cells[man] + 2500 * left] = value_iteration(env.table, 0.9)

    def load(self: Any, _: str) -> None:
        self.Q = values

    agent.agent.load = load
    agent.agent.save = monitor.RLmon.saveData = lambda *_: None

    def run() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            main.main(
                algID="tabQL_Cest_em_t2",
                trial_count=1,
                episode_count=episodes,
                L=np.full(len(TRUTH), SPEAKS),
                C=np.array(TRUTH),
                active_feedback_type="random",
                update_Cest_interval=EVERY,
            )
        return episodes

    return run


def naive(episodes: int) -> Callable[[], int]:
    """Return the same of the naive loop of the tests, with known reliabilities."""
    sys.path.insert(0, str(TESTS))
    loop = importlib.import_module("naive_advise").naive_learner
    env = PacMan(PacMan.Config())
    q = value_iteration(env.table, 0.9)
    optimal = np.arange(4) == q.argmax(1)[:, None]
    right = np.where(optimal[:, :, None], TRUTH, 1 - np.array(TRUTH))
    rates = SPEAKS * np.stack((right, 1 - right))
    weight = np.log(np.array(TRUTH) / (1 - np.array(TRUTH)))

    def run() -> int:
        rng = np.random.default_rng(0)
        drawn = rng.random((500 * episodes, 2 + len(TRUTH)))
        start = rng.random(episodes)
        loop(env.table, env.start.cumsum(), rates, weight, LearningSettings(), episodes, 1.0, lambda n: drawn[n], start)
        return episodes

    return run


def main() -> None:
    """Measure in turns, print and perhaps save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, help="A checkout of the authors' repository.")
    parser.add_argument("--episodes", type=int, default=50, help="Episodes of a trial.")
    parser.add_argument("--learners", type=int, default=50, help="Trials at once, for Axon.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = {"axon": axon(given.episodes, given.learners), "naive": naive(given.episodes)}
    if given.authors is not None:
        sides["authors"] = authors(given.authors, given.episodes)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, side in sides.items():
            begun = time.process_time()  # other processes of the machine do not count
            played = side()
            rates[name].append(played / (time.process_time() - begun))
            say(f"{name}: {rates[name][-1]:,.1f} episodes per second")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        print(f"{name}: {rate:,.1f} episodes per second of CPU; Axon's is {medians['axon'] / rate:,.1f} times that")
    if given.save:
        print(save("advise-cpu", {**facts("cpu", 1), "episodes": given.episodes, "learners": given.learners, **rates}))


if __name__ == "__main__":
    main()
