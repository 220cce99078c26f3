"""How often `axon compare` claims a difference where there is none, and how often it finds one of 0.05 nats.

    python benchmarks/comparison_calibration.py            # trains what the pool lacks, then resamples

The pool is 60 trainings of one recipe, and 60 with other seeds of the same recipe with fewer updates, whose loss is
about 0.05 nats higher. A comparison is drawn from it: so many seeds for each of its values, none of them twice. It goes
through the functions that the report of `axon compare` uses.

- Null: all values draw from the first 60. A comparison of two values has one difference; one of three has two, and its
  claims are counted with and without Holm's correction: the share of comparisons that claim anything.
- Power: the second value draws from the other 60. Since their shift is measured and not exactly 0.05, it is also
  counted with the second pool moved so that the pools' means differ by exactly 0.05.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from support.record import RESULTS, facts, save, say

from axon_core.training import Recipe, build_trainer, fit
from axon_lab.compare.conclusions import conclude
from axon_lab.compare.results import Axis, CellResult, RecipeComparison, RunResult
from axon_lab.compare.statistics import LEVEL

NAME = "comparison-calibration-cpu"
RUNS, COMPARISONS, SEEDS, SHIFT = 60, 2000, (3, 5, 20), 0.05
SMALL = ("context=32", "dim=48", "n_layers=2", "hidden_dim=96")
OVERRIDES = (*(f"model.{each}" for each in SMALL), "trainer.batch_size=16", "trainer.precision=fp32")
STEPS = {"base": 200, "shifted": 174}
"""Updates of the two pools; 174 was chosen on seeds 1000 to 1002 of each, which are in neither pool."""
FIRST_SEED = {"base": 0, "shifted": RUNS}


def train(pool: str, seed: int) -> float:
    """Return the loss on the held-out text of one training."""
    overrides = [*OVERRIDES, f"trainer.steps={STEPS[pool]}", f"trainer.seed={seed}"]
    return fit(build_trainer(Recipe.load("xllama-tiny", overrides)), progress=False).metrics["loss"]


def train_pools(results: dict[str, Any]) -> dict[str, list[float]]:
    """Return the losses of both pools; those that `results` lacks are trained, and each is saved at once."""
    pools: dict[str, list[float]] = results.setdefault("pools", {"base": [], "shifted": []})
    start, made = time.monotonic(), 0
    while missing := sum(RUNS - len(losses) for losses in pools.values()):
        pool = min(pools, key=lambda name: len(pools[name]))
        seed = FIRST_SEED[pool] + len(pools[pool])
        pools[pool].append(train(pool, seed))
        save(NAME, results)
        made += 1
        left = (time.monotonic() - start) / made * (missing - 1)
        say(f"{pool}, seed {seed}: {pools[pool][-1]:.4f} nats; {missing - 1} to go, about {left / 60:.0f} minutes")
    return pools


def comparison_of(samples: Sequence[Sequence[float]]) -> RecipeComparison:
    """Return the comparison of values whose runs ended with these losses, one sample for each value."""
    seeds = tuple(range(len(samples[0])))
    cells = tuple(
        CellResult(
            values=(str(i),),
            runs=tuple(
                RunResult(seed=seed, status="done", folder="", value=loss)
                for seed, loss in zip(seeds, sample, strict=True)
            ),
        )
        for i, sample in enumerate(samples)
    )
    axis = Axis(path="value", values=tuple(cell.values[0] for cell in cells))
    return RecipeComparison(recipe="xllama-tiny", axes=(axis,), seeds=seeds, cells=cells)


def shares(draw: Callable[[], Sequence[Sequence[float]]]) -> dict[str, float]:
    """Return the shares of drawn comparisons that claim a difference: with Holm, without, and by an interval alone."""
    counts = {"claimed": 0, "uncorrected": 0, "interval_without_zero": 0}
    for _ in range(COMPARISONS):
        found = conclude(comparison_of(draw())).differences
        counts["claimed"] += any(each.verdict in ("better", "worse") for each in found)
        counts["uncorrected"] += any(each.p is not None and each.p < LEVEL for each in found)
        counts["interval_without_zero"] += any(
            each.interval and each.interval[0] * each.interval[1] > 0 for each in found
        )
    return {name: count / COMPARISONS for name, count in counts.items()}


def resample(pools: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row for each kind of comparison and number of seeds."""
    base, shifted = (np.asarray(pools[name]) for name in ("base", "shifted"))
    exact = shifted - shifted.mean() + base.mean() + SHIFT
    rows: list[dict[str, Any]] = []
    for n in SEEDS:
        rng = np.random.default_rng(n)

        def null(k: int, n: int = n, rng: np.random.Generator = rng) -> Sequence[Sequence[float]]:
            return rng.choice(base, (k, n), replace=False).tolist()

        def other(pool: np.ndarray, n: int = n, rng: np.random.Generator = rng) -> Sequence[Sequence[float]]:
            return [rng.choice(each, n, replace=False).tolist() for each in (base, pool)]

        for kind, draw in (
            ("null, 2 values", partial(null, 2)),
            ("null, 3 values", partial(null, 3)),
            ("shifted as trained", partial(other, shifted)),
            ("shifted by exactly 0.05", partial(other, exact)),
        ):
            rows.append({"comparison": kind, "seeds": n, **shares(draw)})
            say(
                f"{n:3} seeds  {kind:24} "
                + "  ".join(f"{name} {share:.3f}" for name, share in list(rows[-1].items())[2:])
            )
    return rows


def main() -> None:
    """Train what is missing, resample, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{NAME}.json"
    recipe = {"recipe": "xllama-tiny", "overrides": OVERRIDES, "steps": STEPS, "first_seed": FIRST_SEED}
    fresh = facts("cpu", 1) | {"design": json.loads(json.dumps(recipe))}
    results = json.loads(file.read_text("utf-8")) if file.exists() else fresh
    if results["design"] != fresh["design"]:
        raise SystemExit(f"{file} was measured with another recipe; move it away")
    pools = train_pools(results)
    for name, losses in pools.items():
        say(f"{name}: {np.mean(losses):.4f} nats, standard deviation over seeds {np.std(losses, ddof=1):.4f}")
    results["figures"] = resample(pools)
    say(f"saved {save(NAME, results)}")


if __name__ == "__main__":
    main()
