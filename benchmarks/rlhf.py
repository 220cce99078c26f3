"""A DPO step and an iteration of reinforcement learning: Axon beside TRL, in one run on the same machine.

    pip install -c constraints.txt -e ".[bench]" "trl==1.16.*"
    python benchmarks/rlhf.py --shape 17m --save

Both have the same Llama with the same weights, batch, lengths, precision and fused AdamW, limit the gradients' norm to
1, keep all activations, and have dropout off.

- dpo: one update on a batch of comparisons, the reference's log-probabilities computed beforehand, as both can. Axon
  runs the loop of `axon train dpo`; TRL its `DPOTrainer.training_step`, with the metrics that it always computes. That
  the losses of the first updates agree is checked.
- policy: responses are drawn and scored by policy and reference, and clipped updates on them follow. TRL 1.16 has no
  PPO any more. What is nearest, and measured, is its `RLOOTrainer`: the same roll-out, the same log-probabilities and
  as many updates of the policy, but no value network. So Axon's `ppo` runs here with a constant in place of one, which
  leaves the same passes through the same networks. That both find a response equally likely is checked.
- ppo: Axon's `ppo` as it is, with a value network as large as the policy: all of `policy`, and as many passes through
  another network again. TRL has nothing beside it; its figure is again that of `RLOOTrainer`, which does less.

They take turns, so that both see the same machine; figures are medians. Memory is the most that is resident while a
process of its own works, less what is resident before its first step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from support.axon_rlhf import AxonDPO, AxonPPO
from support.machine import Others
from support.record import facts, save, say
from support.shapes import Shape
from support.sides import memory_of, table
from support.trl_rlhf import TRLDPO, TRLRLOO
from support.work import Work

SHAPES = {
    "tiny": (Shape(32, 2, 2, 2, hidden_dim=64, vocab_size=128, context=32), Work(4, 8, 8, 2)),
    "17m": (Shape(384, 6, 6, 6, hidden_dim=1024, vocab_size=8192, context=256), Work(8, 64, 64, 2)),
}
"""Each with what is done in a step."""
CHECKED = 3
"""How many of the first updates' losses must agree."""
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
Figures = dict[str, dict[str, float]]
"""By what is measured and by library."""


class Side(Protocol):
    """One library at one kind of work."""

    def step(self) -> object:
        """Do one step."""
        ...


def sides(kind: str, name: str, precision: str, folder: Path) -> dict[str, Side]:
    """Return both libraries, ready for work of a kind."""
    made = {side: side_of(side, kind, name, precision, folder) for side in ("axon", "trl")}
    tolerance = TOLERANCE[precision]
    axon, trl = made["axon"], made["trl"]
    if isinstance(axon, AxonDPO) and isinstance(trl, TRLDPO):
        found = torch.tensor([[side.step() for side in (axon, trl)] for _ in range(CHECKED)])
        agree("losses", found[:, 0], found[:, 1], tolerance)
    elif isinstance(axon, AxonPPO) and isinstance(trl, TRLRLOO):
        tokens, expected = axon.roll_out()
        agree("log-probabilities", expected, trl.logprobs(tokens), tolerance)
    return made


def side_of(side: str, kind: str, name: str, precision: str, folder: Path) -> Side:
    """Return one library, ready for work of a kind."""
    shape, work = SHAPES[name]
    if kind == "dpo":
        return AxonDPO(shape, work, precision) if side == "axon" else TRLDPO(shape, work, precision, folder)
    if side == "axon":
        return AxonPPO(shape, work, precision, with_value=kind == "ppo")
    return TRLRLOO(shape, work, precision, folder)


def agree(what: str, axon: torch.Tensor, trl: torch.Tensor, tolerance: float) -> None:
    """End the program where the two libraries do not compute the same."""
    if not torch.allclose(axon.float(), trl.float(), rtol=tolerance, atol=tolerance):
        sys.exit(f"the two do not compute the same {what}: {axon.tolist()} and {trl.tolist()}")


def speed(options: argparse.Namespace, precision: str, folder: Path) -> Figures:
    """Return the median seconds of a step, of both in turn."""
    found: Figures = {}
    for kind in options.kind:
        both = sides(kind, options.shape, precision, folder)
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for number in range(options.rounds + 1):
            for name, side in both.items():
                start = time.perf_counter()
                side.step()
                if number:  # the first time is for what is done only once
                    seconds[name].append(time.perf_counter() - start)
        found[f"{kind} {precision}"] = {name: statistics.median(each) for name, each in seconds.items()}
        say(f"{kind} {precision}: {found[f'{kind} {precision}']}")
    return found


def memory(options: argparse.Namespace) -> Figures:
    """Return the bytes that a kind of work adds, each in a process of its own, in float32."""
    base = [sys.executable, __file__, "--shape", options.shape, "--threads", str(options.threads)]
    found: Figures = {}
    for kind in options.kind:
        runs = {name: [*base, "--alone", name, "--kind", kind] for name in ("axon", "trl")}
        found[f"{kind} memory"] = {
            name: float(subprocess.check_output(command).splitlines()[-1]) for name, command in runs.items()
        }
    return found


def alone(options: argparse.Namespace, folder: Path) -> None:
    """Do two steps with one library, and print the bytes that they add."""
    side = side_of(options.alone, options.kind[0], options.shape, "fp32", folder)
    print(memory_of(side.step))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--kind", nargs="+", choices=["dpo", "policy", "ppo"], default=["dpo", "policy", "ppo"])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each")
    parser.add_argument("--precision", nargs="+", choices=TOLERANCE, default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", choices=["axon", "trl"], help="only the memory of one library, in this process")
    parser.add_argument("--save", action="store_true", help="write the figures into benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        if options.alone:
            alone(options, Path(name))
            return
        results: dict[str, Any] = facts("cpu", options.threads)
        packages = ("axon-dpo", "axon-ppo", "trl", "accelerate")
        results["versions"] |= {package: metadata.version(package) for package in packages}
        shape, work = SHAPES[options.shape]
        results["shape"] = {"name": options.shape, **vars(shape), **vars(work)}
        results["settings"] = {"rounds": options.rounds, "precision": options.precision}
        others, figures = Others(), Figures()
        for precision in options.precision:
            figures |= speed(options, precision, Path(name))
        results["figures"] = figures | memory(options)
        results["others"] = others.share()
    print(table(results["figures"], "trl"))
    print(f"others took {results['others']:.0%} of the processors")
    if options.save:
        say(f"saved as {save(f'rlhf-{options.shape}-cpu', results)}")


if __name__ == "__main__":
    main()
