"""Axon's part of `benchmarks/rlhf.py`: the loop of `axon train`, one step at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from axon_core.randomness import Key
from axon_core.text.tokenizer import CharTokenizer
from axon_core.training.hooks import Hooks, hook
from axon_core.training.loop import Fit
from axon_core.training.train_state import TrainState
from axon_core.training.trainer import Trainer
from axon_dpo import DPOTrainer, PreferenceData
from axon_dpo.data import Pair, Pairs
from axon_ppo import PPOTrainer, PromptData, ValueModel
from support.shapes import Shape
from support.work import BETA, BETAS, LR, Work, reward, written


class AxonSide:
    """A trainer in Axon's loop."""

    def __init__(self, trainer: Trainer) -> None:
        self.losses: list[float] = []
        self.fit = Fit(trainer, TrainState(trainer), None, Hooks((self,)))

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Note the loss, as the loop's own hooks do."""
        self.losses.append(metrics["loss"])

    def step(self) -> float:
        """Do one step and return its loss."""
        self.fit.run_to(self.fit.state.step + 1)
        return self.losses[-1]


class AxonDPO(AxonSide):
    """The trainer `dpo`; the reference's log-probabilities are computed here, before the first step."""

    def __init__(self, shape: Shape, work: Work, precision: str) -> None:
        pairs = [Pair("", *example) for example in work.examples(shape.vocab_size)]
        data = PreferenceData(tokenizer_of(shape), Pairs(pairs), Pairs(pairs[:1]))
        config = DPOTrainer.Config(**settings(work, precision), loss={"type": "sigmoid", "beta": BETA})  # type: ignore[arg-type]
        trainer = DPOTrainer(config, {"policy": shape.axon()}, data)
        trainer.collect(trainer.batch(0), Key((0,)))
        super().__init__(trainer)


class Constant(nn.Module):
    """A value of every prefix that is the same number: the least that PPO can do with."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the number for each token."""
        return self.value.expand(tokens.shape)

    def hidden_matrices(self) -> list[Tensor]:
        """Return none."""
        return []


class AxonPPO(AxonSide):
    """The trainer `ppo`, with a value network or with a constant in place of one."""

    def __init__(self, shape: Shape, work: Work, precision: str, *, with_value: bool) -> None:
        policy = shape.axon()
        value = ValueModel(copy.deepcopy(policy)) if with_value else Constant()
        named = [(f"prompt {i}", written(row.prompt)) for i, row in enumerate(work.examples(shape.vocab_size))]
        config = PPOTrainer.Config(
            **settings(work, precision), epochs=work.epochs, response_tokens=work.response, kl_coefficient=0.05
        )
        models = {"policy": policy, "reference": copy.deepcopy(policy), "value": value}
        self.trainer = PPOTrainer(config, models, PromptData.of(named, tokenizer_of(shape)), _reward)
        super().__init__(self.trainer)

    @torch.no_grad()
    def roll_out(self) -> tuple[Tensor, Tensor]:
        """Return prompts with responses `(b n)`, and the log-probability of each response `(b)`."""
        acted = self.trainer.collect(self.trainer.batch(0), Key((0,)))
        return acted["tokens"], -acted["surprisal"]


def tokenizer_of(shape: Shape) -> CharTokenizer:
    """Return a tokenizer for which every token is a character; a text has no end of its own."""
    return CharTokenizer(written(range(shape.vocab_size)))


def settings(work: Work, precision: str) -> dict[str, Any]:
    """Return what both trainers are told."""
    return {
        "steps": 10**6,
        "batch_size": work.batch,
        "precision": precision,
        "max_grad_norm": 1.0,
        "optimizer": {"type": "adamw", "lr": LR, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0},
    }


def _reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return reward(responses)
