"""Learning at a small budget: recipes beside a GPT of nanoGPT's CPU example, in one run.

The GPT and `xllama-shakespeare` have 4 layers, 4 heads, dim 128 and context 64; the board's record is a recipe of its
own, with the same context. All make 2,000 updates on batches of 12 windows of Tiny Shakespeare (nanoGPT: github
karpathy/nanoGPT, README, "I only have a macbook"; float32, AdamW 1e-3, cosine to 1e-4). They train in turn, a block of
steps each, so that all see the same machine; times are medians over the blocks, and losses are means over the whole
held-out part.

    AXON_DATA_DIR=... python benchmarks/shakespeare.py --seeds 1337 1 2
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from support.plain import GPT
from torch import nn
from torch.nn.functional import cross_entropy

from axon_core.text.corpus import TextData
from axon_core.training.build import build_trainer
from axon_core.training.hooks import Hooks
from axon_core.training.loop import Fit
from axon_core.training.recipe import Recipe
from axon_core.training.train_state import TrainState

RECORDS = Path(__file__).parents[1] / "records" / "shakespeare" / "recipes"
LAYERS, HEADS, DIM, CONTEXT, BATCH, STEPS, BLOCK = 4, 4, 128, 64, 12, 2000, 100


class GPTTraining:
    """The plain training loop."""

    def __init__(self, data: TextData, seed: int) -> None:
        torch.manual_seed(seed)
        self.data, self.model = data, GPT(data.tokenizer.vocab_size, CONTEXT, DIM, LAYERS, HEADS)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": [p for p in self.model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        self.step = 0

    def run_to(self, end: int) -> None:
        """Do the steps up to `end`."""
        for self.step in range(self.step, end):  # noqa: B020 - the attribute is the counter
            warm, t = 100, self.step
            factor = t / warm if t < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (t - warm) / (STEPS - warm)))
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-3 * factor
            starts = torch.randint(len(self.data.train) - CONTEXT, (BATCH,)).tolist()
            tokens = torch.stack([self.data.train[s : s + CONTEXT + 1] for s in starts]).long()
            logits = self.model(tokens[:, :-1])
            cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step = end

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Return the mean loss over the whole held-out part."""
        total, count = 0.0, 0
        for tokens in self.data.held_out_batches(CONTEXT, 64):
            logits = self.model(tokens[:, :-1])
            total += cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()
            count += tokens[:, 1:].numel()
        return total / count


def started(recipe: str, seed: int, overrides: list[str]) -> Fit:
    """Return a training of a recipe, before its first step."""
    trainer = build_trainer(Recipe.load(recipe, [f"trainer.seed={seed}", *overrides]))
    return Fit(trainer, TrainState(trainer), None, Hooks(()))


def timed(run_to: object, end: int) -> float:
    """Return the milliseconds a step took until `end`."""
    start = time.perf_counter()
    run_to(end)  # type: ignore[operator]
    return (time.perf_counter() - start) / BLOCK * 1e3


def main() -> None:
    """Train both for each seed and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="an override of the recipe, such as a.b=c")
    recipes = ["xllama-shakespeare", str(max(RECORDS.glob("*.toml")))]
    parser.add_argument("--recipes", nargs="+", default=recipes, help="installed recipes, or TOML files")
    options = parser.parse_args()
    names = [Path(recipe).stem for recipe in options.recipes]
    losses: dict[str, list[float]] = {name: [] for name in (*names, "GPT")}
    times: dict[str, list[float]] = {name: [] for name in (*names, "GPT")}
    sizes: dict[str, int] = {}
    for seed in options.seeds:
        ours = dict(zip(names, (started(recipe, seed, options.set) for recipe in options.recipes), strict=True))
        theirs = GPTTraining(ours[names[0]].trainer.data, seed)  # type: ignore[attr-defined]
        for end in range(BLOCK, STEPS + 1, BLOCK):
            times["GPT"].append(timed(theirs.run_to, end))
            if end < STEPS:  # the last block of ours evaluates too, and is not timed
                for name, fit in ours.items():
                    times[name].append(timed(fit.run_to, end))
        for name, fit in ours.items():
            losses[name].append(fit.run_to(STEPS).metrics["loss"])
            sizes[name] = sum(p.numel() for p in fit.trainer.models["model"].parameters())
        losses["GPT"].append(theirs.evaluate())
        sizes["GPT"] = sum(p.numel() for p in theirs.model.parameters())
        print(f"seed {seed}: {', '.join(f'{name} {found[-1]:.4f}' for name, found in losses.items())}", flush=True)
    head = f"{'':20}{'parameters':>12}{'loss, mean':>12}{'min':>8}{'max':>8}"
    print(f"\n{head}{'ms/step':>10}{'2,000 steps':>13}{'of GPT':>8}")
    for name, found in losses.items():
        ms = statistics.median(times[name])
        row = f"{name:20}{sizes[name]:12,}{statistics.mean(found):12.4f}{min(found):8.4f}{max(found):8.4f}"
        print(f"{row}{ms:10.1f}{ms * STEPS / 1e3:11.1f} s{ms / statistics.median(times['GPT']):8.2f}")
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
