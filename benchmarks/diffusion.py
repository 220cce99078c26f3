"""A training step and 50-step DDIM sampling: axon-ddpm beside diffusers, in one run on the same machine.

    pip install -c constraints.txt "diffusers==0.42.*"
    python benchmarks/diffusion.py                                  # the model of recipe emoji32
    python benchmarks/diffusion.py --recipe cifar10 --batch 8 --rounds 5 --samplings 1 --save

Both have the same U-Net with the same weights, batch and precision; that their outputs agree is checked. A training
step is what each library's user runs: the loop of `axon train` (`axon_core.training.Fit`), and the loop of diffusers'
example for unconditional training (noise, `add_noise`, squared error, clipping, AdamW, `EMAModel`). They take turns, so
that both see the same machine; figures are medians. Memory is the most that is resident while a process of its own
trains or samples, less what is resident when all is built; the median of three such processes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from support.machine import Others
from support.record import facts, save, say
from support.sides import memory_of, table
from torch import Tensor
from torch.nn.functional import mse_loss

from axon_core.training.build import build_trainer
from axon_core.training.hooks import Hooks
from axon_core.training.loop import Fit
from axon_core.training.recipe import Recipe
from axon_core.training.train_state import TrainState
from axon_ddpm import Dali, Diffusion
from axon_ddpm.interop import diffusers_options, diffusers_weights
from axon_ddpm.samplers import last_frame
from axon_ddpm.trainer import DDPMTrainer

STEPS = 50
"""Of sampling."""


def trainer_of(recipe: str, batch: int, precision: str, folder: Path) -> DDPMTrainer:
    """Return the recipe's trainer on random pictures 32×32, with the plain loss that both libraries have."""
    file = folder / "pictures.npz"
    if not file.exists():
        np.savez(file, images=np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    changes = {
        "data.path": file,
        "trainer.batch_size": batch,
        "trainer.precision": precision,
        "trainer.diffusion.schedule.type": "linear",
        "trainer.diffusion.parameterisation": "epsilon",
        "trainer.loss": "simple",
        "trainer.flip": "false",
        "trainer.device": "cpu",
        "trainer.warmup": 0,
        "trainer.schedule": "constant",
    }
    trainer = build_trainer(Recipe.load(recipe, [f"{name}={value}" for name, value in changes.items()]))
    if not isinstance(trainer, DDPMTrainer):
        sys.exit(f"{recipe} is not a recipe of the trainer ddpm")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return trainer


class Axon:
    """Axon's training and sampling."""

    def __init__(self, trainer: DDPMTrainer) -> None:
        self.model = copy.deepcopy(trainer.model).eval()
        self.dali = Dali(self.model, Diffusion.build(), Dali.Config(steps=STEPS))
        self.fit = Fit(trainer, TrainState(trainer), None, Hooks(()))
        trainer.model.train()

    def train(self) -> None:
        """Do one step."""
        self.fit._step()

    def sample(self, batch: int) -> Tensor:
        """Sample one batch."""
        return last_frame(self.dali.sample(batch))

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """Return what the model says."""
        return self.model(x, t)


class Diffusers:
    """The same with diffusers."""

    def __init__(self, trainer: DDPMTrainer) -> None:
        self.config = trainer.config
        self.data = trainer.data.unit(trainer.data.train.images)
        self.training = UNet2DModel(**diffusers_options(trainer.model))  # type: ignore[arg-type]
        self.training.load_state_dict(diffusers_weights(trainer.model))  # type: ignore[arg-type]
        self.model = copy.deepcopy(self.training).eval()
        self.noising, self.ddim = DDPMScheduler(), DDIMScheduler(timestep_spacing="trailing")
        lr = self.config.optimizer.lr
        self.optimizer = torch.optim.AdamW(self.training.parameters(), lr=lr, weight_decay=0.0, fused=True)
        self.average = EMAModel(self.training.parameters(), decay=self.config.ema or 0.9999, use_ema_warmup=True)
        self.training.train()

    def train(self) -> None:
        """Do one step."""
        x0 = self.data[torch.randint(len(self.data), (self.config.batch_size,))]
        noise, t = torch.randn(x0.shape), torch.randint(1000, (len(x0),))
        x_t = self.noising.add_noise(x0, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = mse_loss(self.training(x_t, t, return_dict=False)[0].float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.training.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.training.parameters())
        loss.item()

    def sample(self, batch: int) -> Tensor:
        """Sample one batch."""
        x = torch.randn(batch, *self.data.shape[1:])
        self.ddim.set_timesteps(STEPS)
        with torch.no_grad():
            for t in self.ddim.timesteps:
                x = self.ddim.step(self.output(x, t), t, x).prev_sample
        return x

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """Return what the model says."""
        return self.model(x, t, return_dict=False)[0]


SIDES: dict[str, Callable[[DDPMTrainer], Axon | Diffusers]] = {"axon": Axon, "diffusers": Diffusers}
Figures = dict[str, dict[str, float]]
"""By what is measured and by library."""


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(options: argparse.Namespace, precision: str, folder: Path) -> Figures:
    """Return the median seconds of a training step and of sampling a batch, of both in turn."""
    trainer = trainer_of(options.recipe, options.batch, precision, folder)
    sides = {name: make(trainer) for name, make in SIDES.items()}
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(sides["axon"].output(x, t), sides["diffusers"].output(x, t), rtol=0, atol=1e-4)
    found: Figures = {}
    for work, rounds in (("train", options.rounds), ("sample", options.samplings)):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, side in sides.items():
                spent = timed(lambda side=side, work=work: run(side, work, options.batch, precision))
                if number:  # the first time is for what is done only once
                    seconds[name].append(spent)
        found[f"{work} {precision}"] = {name: statistics.median(each) for name, each in seconds.items()}
        say(f"{work} {precision}: {found[f'{work} {precision}']}")
    return found


def run(side: Axon | Diffusers, work: str, batch: int, precision: str) -> None:
    """Do one training step, or sample one batch in 50 steps."""
    if work == "train":
        side.train()
        return
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        side.sample(batch)


def memory(options: argparse.Namespace) -> Figures:
    """Return the bytes that training and sampling add: medians of three processes each, as they vary by a tenth."""
    base = [sys.executable, __file__, "--recipe", options.recipe, "--batch", str(options.batch)]

    def added(name: str, work: str) -> float:
        return float(subprocess.check_output([*base, "--alone", name, "--work", work]).splitlines()[-1])

    return {
        f"{work} memory": {name: statistics.median(added(name, work) for _ in range(3)) for name in SIDES}
        for work in ("train", "sample")
    }


def alone(options: argparse.Namespace, folder: Path) -> None:
    """Do the work of one library twice, and print the bytes that it adds."""
    side = SIDES[options.alone](trainer_of(options.recipe, options.batch, "fp32", folder))
    print(memory_of(lambda: run(side, options.work, options.batch, "fp32")))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="emoji32", help="whose model and batch: emoji32 or cifar10")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="training steps of each")
    parser.add_argument("--samplings", type=int, default=3, help="batches sampled by each")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--alone", choices=[*SIDES], help="only the memory of one library, in this process")
    parser.add_argument("--work", choices=["train", "sample"], default="train", help="with --alone: at what")
    parser.add_argument("--save", action="store_true", help="write the figures into benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.alone:
            alone(options, Path(name))
            return
        results: dict[str, Any] = facts("cpu", torch.get_num_threads())
        results["versions"] |= {name: metadata.version(name) for name in ("axon-ddpm", "diffusers")}
        results["settings"] = {k: v for k, v in vars(options).items() if k not in ("alone", "work", "save")}
        others, figures = Others(), Figures()
        for precision in options.precision:
            figures |= speed(options, precision, Path(name))
        results["figures"] = figures | memory(options)
        results["others"] = others.share()
    print(table(results["figures"], "diffusers"))
    print(f"others took {results['others']:.0%} of the processors")
    if options.save:
        say(f"saved as {save(f'diffusion-{options.recipe}-cpu', results)}")


if __name__ == "__main__":
    main()
