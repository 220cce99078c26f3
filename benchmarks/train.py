"""Training side by side: Axon's loop, transformers and plain PyTorch on one shape, from the same weights, in one run.

    pip install -c constraints.txt -e ".[bench]"    # transformers; without it that row is left out
    python benchmarks/train.py --shape 17m --precision bf16

- axon: X-Llama and the trainer `causal_lm` in the loop that `axon train` runs (`axon_core.training.loop.Fit`);
- axon compiled: the same with `trainer.compile=true`;
- transformers: `LlamaForCausalLM`, and its own loss, in a plain loop;
- plain: the same Llama in a hundred lines of PyTorch (`support/plain.py`), in the same plain loop;
- gpt: a GPT as nanoGPT's of the same width and depth, in that loop; its layers do as much, though not the same.

All make updates with torch's fused AdamW, and limit the gradients' norm to 1, on the same windows of tokens. Those that
are a Llama start from the same weights, so that the losses of the first updates must agree: that is checked. Then
they take turns, some updates each, for some rounds; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from support.machine import Others
from support.plain import GPT, Llama
from support.record import facts, save, say
from support.shapes import Shape, transformers_like
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import ByteTokenizer
from axon_core.training.hooks import Hooks, hook
from axon_core.training.loop import Fit
from axon_core.training.train_state import TrainState
from axon_xllama import CausalLMTrainer

SHAPES = {
    "shakespeare": (Shape(128, 4, 4, 4, hidden_dim=352, vocab_size=65, context=64), 12),
    "17m": (Shape(384, 6, 6, 6, hidden_dim=1024, vocab_size=8192, context=256), 4),
}
"""Each with the number of windows in a batch."""

CHECKED = 3
"""How many of the first updates' losses must agree."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


class Training(Protocol):
    """A model in training."""

    losses: list[float]

    def run(self, updates: int) -> None:
        """Make so many updates."""
        ...


class AxonTraining:
    """Axon's own loop."""

    def __init__(self, trainer: CausalLMTrainer) -> None:
        self.losses: list[float] = []
        self.fit = Fit(trainer, TrainState(trainer), None, Hooks((self,)))

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Note the loss, as the loop's own hooks do."""
        self.losses.append(metrics["loss"])

    def run(self, updates: int) -> None:
        """Make so many updates."""
        self.fit.run_to(self.fit.state.step + updates)


class PlainTraining:
    """A plain loop; the optimiser, its groups and the clipping are those of Axon's trainer."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], trainer: CausalLMTrainer) -> None:
        self.model, self.loss, self.trainer, self.losses = model.to(trainer.config.device).train(), loss, trainer, []
        matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)

    def run(self, updates: int) -> None:
        """Make so many updates."""
        config = self.trainer.config
        for _ in range(updates):
            tokens = self.trainer.batch(len(self.losses))["tokens"].to(config.device)
            with torch.autocast(torch.device(config.device).type, torch.bfloat16, config.precision == "bf16"):
                loss = self.loss(tokens[:, :-1], tokens[:, 1:].contiguous())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss.item())


def trainer_for(shape: Shape, batch_size: int, precision: str, device: str, *, compile: bool) -> CausalLMTrainer:
    """Return Axon's trainer, with windows of random tokens as its data."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (1 << 20,), generator=generator, dtype=torch.int32)
    data = TextData(ByteTokenizer(), tokens, tokens[:2])
    config = CausalLMTrainer.Config(
        steps=10**6,
        batch_size=batch_size,
        precision="bf16" if precision == "bf16" else "fp32",
        max_grad_norm=1,
        device=device,
        compile=compile,
        optimizer={"type": "adamw", "lr": 1e-3, "weight_decay": 0.1},  # pyright: ignore[reportArgumentType]
    )
    return CausalLMTrainer(config, {"model": shape.axon().to(device)}, data)


def plain_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean cross-entropy of a module that returns scores."""
    return lambda tokens, targets: cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def start(shape: Shape, batch_size: int, precision: str, device: str) -> dict[str, Training]:
    """Return all trainings, those of a Llama from the same weights."""
    trainer, faster = (trainer_for(shape, batch_size, precision, device, compile=compile) for compile in (False, True))
    faster.model.load_state_dict(trainer.model.state_dict())
    llama = Llama(shape)
    vector_to_parameters(parameters_to_vector(shape.axon().parameters()), llama.parameters())
    gpt = GPT(shape.vocab_size, shape.context, shape.dim, shape.n_layers, shape.n_heads)
    trainings: dict[str, Training] = {"axon": AxonTraining(trainer), "axon compiled": AxonTraining(faster)}
    try:
        theirs: Any = transformers_like(shape.axon())
    except ModuleNotFoundError:
        say("transformers is not installed")
    else:
        trainings["transformers"] = PlainTraining(
            theirs,
            lambda tokens, targets: theirs(tokens, labels=targets, shift_labels=targets, use_cache=False).loss,
            trainer,
        )
    trainings["plain"] = PlainTraining(llama, plain_loss(llama), trainer)
    trainings["gpt"] = PlainTraining(gpt, plain_loss(gpt), trainer)
    return trainings


def disagreement(trainings: dict[str, Training], tolerance: float) -> str | None:
    """Return whose first losses are not Axon's, if anyone's are not."""
    expected = torch.tensor(trainings["axon"].losses[:CHECKED])
    for name in ("axon compiled", "transformers", "plain"):
        if name in trainings:
            found = torch.tensor(trainings[name].losses[:CHECKED])
            if not torch.allclose(found, expected, rtol=tolerance, atol=0):
                return f"{name} does not do what axon does: losses {found.tolist()}, not {expected.tolist()}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--precision", choices=TOLERANCE, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=2, help="updates in each turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write the JSON into benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape, batch_size = SHAPES[options.shape]
    results: dict[str, Any] = {
        **facts(options.device, options.threads),
        "shape": {"name": options.shape, **vars(shape), "batch_size": batch_size},
        "settings": {"rounds": options.rounds, "updates": options.updates},
        "tokens_per_second": {},
        "others": {},
    }
    for precision in options.precision:
        trainings = start(shape, batch_size, precision, options.device)
        for training in trainings.values():
            training.run(CHECKED)
        if problem := disagreement(trainings, TOLERANCE[precision]):
            sys.exit(problem)
        others = Others()
        rates: dict[str, list[float]] = {name: [] for name in trainings}
        for _ in range(options.rounds):
            for name, training in trainings.items():
                seconds = timed(training, options.updates, options.device)
                rates[name].append(options.updates * batch_size * shape.context / seconds)
        results["tokens_per_second"][precision] = rates
        results["others"][precision] = others.share()
    print(json.dumps(results, indent=2) if options.json else table(results))
    if options.save:
        say(f"saved as {save(f'train-{options.shape}-{torch.device(options.device).type}', results)}")


def timed(training: Training, updates: int, device: str) -> float:
    """Return how many seconds so many updates take."""
    start = time.perf_counter()
    training.run(updates)
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(results: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{'tokens a second':26}{'median':>10}{'min':>10}{'max':>10}{'axon / it':>12}"]
    for precision, rates in results["tokens_per_second"].items():
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name, found in rates.items():
            row = f"{f'{name} {precision}':26}{medians[name]:10.0f}{min(found):10.0f}{max(found):10.0f}"
            lines.append(f"{row}{medians['axon'] / medians[name]:12.2f}")
        lines.append(f"others took {results['others'][precision]:.0%} of the processors")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
