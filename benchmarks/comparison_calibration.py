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
from typing import Any

import torch
from support.record import RESULTS, facts, save, say

from axon_core.training import Recipe, build_trainer, fit

NAME = "comparison-calibration-cpu"
RUNS = 60
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
    train_pools(results)


if __name__ == "__main__":
    main()
