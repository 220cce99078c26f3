"""A training step and 50-step DDIM sampling: axon-ddpm beside diffusers, in one run on the same machine.

Both have the same U-Net (the recipe's, by its weights too), batch and precision. A training step is what each library's
user runs: Axon's own loop for recipe `emoji32`, and the loop of diffusers' example for unconditional training (noise,
`add_noise`, squared error, clipping, AdamW, `EMAModel`). They take turns, so that both see the same machine; times are
medians. Memory is the largest resident set of a process that does only that work, less that of one that has only built
the model.

    python benchmarks/diffusion.py                       # all measurements
    python benchmarks/diffusion.py --recipe cifar10 --batch 8 --rounds 5
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

from axon_core.hooks import Hooks
from axon_core.loop import Fit
from axon_core.recipe import Recipe
from axon_core.state import State
from axon_ddpm import Dali, Diffusion
from axon_ddpm.interop import diffusers_options, diffusers_weights
from axon_ddpm.trainer import DDPMTrainer


def trainer_of(recipe: str, batch: int, precision: str, folder: Path) -> DDPMTrainer:
    """Return the recipe's trainer on random pictures, with the plain loss that both libraries have."""
    if not (folder / "pictures.npz").exists():
        np.savez(folder / "pictures.npz", images=np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    changes = [f"data.path={folder / 'pictures.npz'}", f"trainer.batch_size={batch}", f"trainer.precision={precision}"]
    chain = ["trainer.diffusion.schedule.type=linear", "trainer.diffusion.parameterisation=epsilon"]
    more = ["trainer.loss=simple", "trainer.device=cpu", "trainer.steps=100000", "trainer.flip=false"]
    trainer = Recipe.load(recipe, [*changes, *chain, *more]).build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.models["model"].parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return trainer  # type: ignore[return-value]


class Axon:
    """Axon's training and sampling."""

    def __init__(self, trainer: DDPMTrainer) -> None:
        self.fit = Fit(trainer, State(trainer), None, Hooks(()))
        self.dali = Dali(copy.deepcopy(trainer.model).eval(), Diffusion.build(), Dali.Config(steps=50))
        self.fit.trainer.model.train()  # type: ignore[attr-defined]

    def train(self) -> None:
        """Do one step."""
        self.fit._step()

    def sample(self, batch: int) -> torch.Tensor:
        """Sample one batch."""
        *_, last = self.dali.sample(batch)
        return last.x


class Diffusers:
    """The same with diffusers."""

    def __init__(self, trainer: DDPMTrainer) -> None:
        self.config = trainer.config
        self.data = trainer.data.unit(trainer.data.train.images)
        self.model = UNet2DModel(**diffusers_options(trainer.model))  # type: ignore[arg-type]
        self.model.load_state_dict(diffusers_weights(trainer.model))  # type: ignore[arg-type]
        self.resting = copy.deepcopy(self.model).eval()
        self.noising, self.ddim = DDPMScheduler(), DDIMScheduler(timestep_spacing="trailing")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.average = EMAModel(self.model.parameters(), decay=self.config.ema, use_ema_warmup=True)
        self.model.train()

    def train(self) -> None:
        """Do one step."""
        x0 = self.data[torch.randint(len(self.data), (self.config.batch_size,))]
        noise, t = torch.randn(x0.shape), torch.randint(1000, (len(x0),))
        x_t = self.noising.add_noise(x0, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = mse_loss(self.model(x_t, t, return_dict=False)[0].float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.model.parameters())
        loss.item()

    def sample(self, batch: int) -> torch.Tensor:
        """Sample one batch."""
        x = torch.randn(batch, *self.data.shape[1:])
        self.ddim.set_timesteps(50)
        with torch.no_grad():
            for t in self.ddim.timesteps:
                x = self.ddim.step(self.resting(x, t, return_dict=False)[0], t, x).prev_sample
        return x


SIDES: dict[str, Callable[[DDPMTrainer], Axon | Diffusers]] = {"Axon": Axon, "diffusers": Diffusers}


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(options: argparse.Namespace, precision: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return the median seconds of a training step and of sampling a batch, for both in turn."""
    trainer = trainer_of(options.recipe, options.batch, precision, folder)
    sides = {name: make(trainer) for name, make in SIDES.items()}
    same = [side.resting if isinstance(side, Diffusers) else side.dali.model for side in sides.values()]
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.no_grad():
        ours, theirs = same[0](x, t), same[1](x, t).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    found: dict[str, dict[str, list[float]]] = {name: {"train": [], "sample": []} for name in sides}
    for side in sides.values():
        side.train()
    for _ in range(options.rounds):
        for name, side in sides.items():
            found[name]["train"].append(timed(side.train))
    for _ in range(options.samplings):
        for name, side in sides.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found[name]["sample"].append(timed(lambda side=side: side.sample(options.batch)))
    return {name: {k: statistics.median(v) for k, v in times.items() if v} for name, times in found.items()}


def alone(options: argparse.Namespace, folder: Path) -> None:
    """Do the work of one library, and print the largest resident set in MB, before it and after."""
    side = SIDES[options.alone](trainer_of(options.recipe, options.batch, "fp32", folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        side.train() if options.work == "train" else side.sample(options.batch)
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def memory(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the megabytes that training and sampling add, each in a process of its own."""
    base = [sys.executable, __file__, "--recipe", options.recipe, "--batch", str(options.batch)]
    return {
        name: {
            work: float(subprocess.check_output([*base, "--alone", name, "--work", work]).splitlines()[-1])
            for work in ("train", "sample")
        }
        for name in SIDES
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="emoji32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="training steps each")
    parser.add_argument("--samplings", type=int, default=3, help="batches sampled each")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--alone", choices=[*SIDES], help="measure the memory of one library, in this process")
    parser.add_argument("--work", choices=["train", "sample"], default="train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.alone:
            alone(options, Path(name))
            return
        print(f"{options.recipe}, batch {options.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{'':26}{'Axon':>10}{'diffusers':>12}{'ratio':>8}")
        for precision in options.precision:
            found = measure(options, precision, Path(name))
            for work, unit in (("train", "ms a step"), ("sample", "s, 50 steps")):
                scale = 1e3 if work == "train" else 1
                if work in found["Axon"]:
                    ours, theirs = (found[side][work] * scale for side in SIDES)
                    print(
                        f"{f'{work}, {precision}, {unit}':26}{ours:10.2f}{theirs:12.2f}{theirs / ours:8.2f}", flush=True
                    )
    used = memory(options)
    for work in ("train", "sample"):
        ours, theirs = (used[side][work] for side in SIDES)
        print(f"{f'{work}, fp32, MB':26}{ours:10.0f}{theirs:12.0f}{theirs / ours:8.2f}")


if __name__ == "__main__":
    main()
