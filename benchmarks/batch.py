"""A batch of prompts of different lengths beside the same prompts one after the other, both by Axon.

    python benchmarks/batch.py --shape 125m

Eight prompts, 64 greedy tokens each; tokens a second over the whole time, prompts included, medians over the rounds. In
float32 each row must give the same tokens as alone; in the other precisions the equal rows are counted.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import torch
from support.decoders import Task, Timing, arguments, choose, prompts, start
from support.machine import Others
from support.record import facts, save, say
from support.shapes import SHAPES

LENGTHS = (16, 5, 24, 11, 3, 19, 8, 13)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens for each prompt")
    options = parser.parse_args()
    shape, device, threads, new = SHAPES[options.shape], options.device, options.threads, options.new_tokens
    rows = prompts(shape, LENGTHS)
    together, alone = Task(rows, new), [Task([row], new) for row in rows]
    contenders = [c for c in choose(options.only, device) if c.library == "axon"]
    workers, absent = start(contenders, shape, device, threads, [max(alone, key=lambda task: task.length), together])
    others = Others()
    timings: dict[str, list[tuple[Timing, list[Timing]]]] = {name: [] for name in workers}
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}")
        for name, worker in workers.items():
            timings[name].append((worker(together), [worker(task) for task in alone]))
    disturbed = others.share()
    for worker in workers.values():
        worker.close()

    found: list[dict[str, Any]] = [
        {"name": c.name, "precision": c.precision, **figures(timings[c.name], new)}
        for c in contenders
        if c.name in timings
    ]
    results = {
        **facts(device, threads),
        "shape": {"name": options.shape, **vars(shape)},
        "settings": {"prompts": LENGTHS, "new_tokens": new, "rounds": options.rounds},
        "others": disturbed,
        "contenders": found,
        "absent": absent,
    }
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'batch-{options.shape}-{torch.device(device).type}', results)}")
    if any(int(one["equal_rows"]) < len(LENGTHS) for one in found if one["precision"] == "fp32"):
        sys.exit("in float32 a row of the batch gave other tokens than alone")


def figures(rounds: list[tuple[Timing, list[Timing]]], new: int) -> dict[str, Any]:
    """Return tokens a second of the batch and of the rows one by one, and how many rows brought the same tokens."""
    total = new * len(LENGTHS)
    batch = statistics.median(total / together.seconds for together, _ in rounds)
    rows = statistics.median(total / sum(row.seconds for row in alone) for _, alone in rounds)
    first, alone = rounds[0]
    equal = sum([row] == one.tokens for row, one in zip(first.tokens, alone, strict=True))
    return {"batch": batch, "one_by_one": rows, "ratio": batch / rows, "equal_rows": equal}


def table(results: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{'tokens a second':26}{'batch of 8':>12}{'one by one':>12}{'ratio':>8}{'equal rows':>12}"]
    for c in results["contenders"]:
        lines.append(f"{c['name']:26}{c['batch']:12.1f}{c['one_by_one']:12.1f}{c['ratio']:8.2f}{c['equal_rows']:12}")
    lines += [f"{name:26}{reason}" for name, reason in results["absent"].items()]
    return "\n".join([*lines, f"others took {results['others']:.0%} of the processors"])


if __name__ == "__main__":
    main()
