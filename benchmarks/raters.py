"""What it is worth to learn how reliable raters are: rewards and policies from labels of which 40 % are an adversary's.

    python benchmarks/raters.py --out DIR [--seeds 0 1 2]

For each seed it runs the stages of the recipe `align-raters` with other raters (two reliable ones and an adversary),
and adds the training with reliabilities on the reliable raters' labels alone. It prints and saves, as
`DIR/raters.json`, the accuracy of each reward model and the win rate of each policy; `plain` trusts everybody, `clean`
has never seen the adversary, `reliable` learns reliabilities from the labels of `clean`. A second call with the same
DIR continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

from axon_core import parse_json, to_json, to_toml
from axon_core.checkpoint import write_text
from axon_core.papers import find_recipe
from axon_instructgpt import Pipeline, align

RATERS = {
    "Ada": {"reliability": 0.95, "share": 3},
    "Bo": {"reliability": 0.9, "share": 3},
    "Dora": {"reliability": 0.05, "share": 4},
}


def stages() -> dict[str, Any]:
    """Return the recipe's stages with the benchmark's raters, and the trainings `reward_reliable`, `dpo_reliable`."""
    tables = tomllib.loads(find_recipe("align-raters").path.read_text(encoding="utf-8"))
    tables["rated"]["raters"] = RATERS
    last = {name: tables.pop(name) for name in ("policies", "report")}
    for name in ("reward", "dpo"):
        clean = tables[f"{name}_clean"]
        trainer = {**clean["trainer"], "loss": tables[name]["trainer"]["loss"]}
        tables[f"{name}_reliable"] = {**clean, "trainer": trainer}
    last["policies"]["policies"]["reliable"] = "@dpo_reliable"
    last["report"]["reward_models"]["reliable"] = "@reward_reliable"
    return {**tables, **last}


def main() -> None:
    """Run all seeds, and save what they measured after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    recipe = given.out / "raters.toml"
    write_text(recipe, to_toml(stages()))
    found = list[dict[str, Any]]()
    for seed in given.seeds:
        out = given.out / f"seed-{seed}"
        align(Pipeline.load(str(recipe), [f"seed={seed}"]), out, print)
        report = parse_json((out / "report" / "report.json").read_text(encoding="utf-8"))
        ratings = {
            run: {one["name"]: [round(one["reliability"], 3), round(one["error"], 3)] for one in rows}
            for run, rows in report["runs"].items()
        }
        wins = {name: round(rate, 4) for name, (rate, _) in report["win_rates"].items()}
        accuracies = {name: round(share, 4) for name, share in report["accuracies"].items()}
        found.append({"seed": seed, "reward_accuracy": accuracies, "win_rate": wins, "reliability": ratings})
        print(to_json(found[-1]))
        write_text(given.out / "raters.json", to_json(found, indent=1))


if __name__ == "__main__":
    main()
