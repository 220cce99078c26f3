"""The claims of the paper's card, checked on small models and known rewards."""

from __future__ import annotations

import statistics
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor

from axon_core import Key
from axon_core.alignment import require_role, token_logprobs
from axon_core.interfaces import CausalLM
from axon_core.papers import Outcome
from axon_core.text import ByteTokenizer, read_text
from axon_core.training import Recipe, build_trainer, evaluate, fit
from axon_instructgpt.ranking import ranking_loss
from axon_instructgpt.reward_model import RewardModel

_SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "context": 24}
_SEEDS = (0, 1, 2)
_GAMMA = 0.5
_RATE = 5e-4


def single_element() -> Outcome:
    """Count the trunk's rows for nine answers, and compare loss and gradient with those of all 36 pairs."""
    trunk = {"type": "xllama", "vocab_size": 11, **_SIZES}
    with Key((0, "weights")).seeded("cpu"):
        model = RewardModel.build(trunk=trunk, dim=_SIZES["dim"]).double()
    k, rows = 9, list[int]()
    answers = torch.randint(11, (k, 10), generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones_like(answers, dtype=torch.bool)
    features = model.trunk.features

    def counted(tokens: Tensor, **more: Any) -> Tensor:
        rows.append(len(tokens))
        return features(tokens, **more)

    model.trunk.features = counted  # type: ignore[method-assign]
    scores = model.whole(answers, everywhere)
    together = ranking_loss(scores[None], torch.ones(1, k, dtype=torch.bool), scores.new_zeros(1)).sum()
    ran = sum(rows)
    pairs = [model.whole(answers[[i, j]], everywhere[[i, j]]) for i in range(k) for j in range(i + 1, k)]
    apart = torch.stack([-(pair[0] - pair[1]).sigmoid().log() for pair in pairs]).mean()
    worst = (together - apart).abs().item()
    for one, other in zip(_gradient(together, model), _gradient(apart, model), strict=True):
        worst = max(worst, (one - other).abs().max().item())
    return Outcome(
        ran == k and len(pairs) == comb(k, 2) and worst < 1e-12,
        f"{ran} answers run for {comb(k, 2)} pairs; loss and gradient differ by {worst:.1e}",
    )


def log_odds() -> Outcome:
    """Minimise the expected loss of four answers with known preferences; compare the rewards with the log odds."""
    truth = torch.tensor([0.0, 0.4, 1.5, -2.0], dtype=torch.float64)
    first, second = torch.triu_indices(4, 4, offset=1)
    probability = (truth[first] - truth[second]).sigmoid()
    rewards = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rewards], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    both, none = torch.ones(6, 2, dtype=torch.bool), torch.zeros(6, dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        pairs = torch.stack((rewards[first], rewards[second]), 1)
        loss = probability * ranking_loss(pairs, both, none) + (1 - probability) * ranking_loss(
            pairs.flip(1), both, none
        )
        total = loss.sum()
        total.backward()
        return total

    optimizer.step(closure)
    found = rewards.detach()[first] - rewards.detach()[second]
    worst = (found - (probability / (1 - probability)).log()).abs().max().item()
    return Outcome(worst < 1e-6, f"largest difference from the log odds of six pairs: {worst:.1e}")


def ptx() -> Outcome:
    """Train PPO towards vowels with and without the pre-training loss; compare rewards and losses on held-out text.

    The claim holds if, for every seed, PPO raises the loss on the text, raises it less with the pre-training loss, and
    still gains at least half of the reward that it gains without.
    """
    runs = [(_trained(seed, None), _trained(seed, _GAMMA)) for seed in _SEEDS]
    held = all(
        plain.after.loss > plain.before.loss
        and mixed.after.loss < plain.after.loss
        and mixed.gain >= plain.gain / 2 > 0
        for plain, mixed in runs
    )
    before, plain, mixed = (
        _State(*(statistics.mean(column) for column in zip(*states, strict=True)))
        for states in zip(*((plain.before, plain.after, mixed.after) for plain, mixed in runs), strict=True)
    )
    return Outcome(
        "direction" if held else False,
        f"on held-out text {before.loss:.2f} nats per byte before, {plain.loss:.2f} after PPO and "
        f"{mixed.loss:.2f} after "
        f"PPO-ptx; vowels {before.reward:.2f}, {plain.reward:.2f} and {mixed.reward:.2f}; PPO loses more by:",
        [plain.after.loss - mixed.after.loss for plain, mixed in runs],
        _SEEDS,
    )


class _State(NamedTuple):
    loss: float
    """Loss on held-out text, in nats per byte."""
    reward: float
    """Share of vowels in responses to held-out prompts."""


class _Run(NamedTuple):
    before: _State
    after: _State

    @property
    def gain(self) -> float:
        return self.after.reward - self.before.reward


def _trained(seed: int, gamma: float | None) -> _Run:
    """Return the loss and reward of a pre-trained policy before and after PPO with this weight of pre-training."""
    text = read_text()
    auxiliary = {"auxiliary": {"type": "pretraining", "gamma": gamma, "per_response": 2}} if gamma else {}
    reward = {"type": "regex", "pattern": "[aeiou]"}
    tables = {
        "model": {"policy": {"type": "xllama", **_SIZES}, "reward": reward, **auxiliary},
        "trainer": {
            "type": "ppo",
            "steps": 30,
            "batch_size": 16,
            "seed": seed,
            "response_tokens": 8,
            "kl_coefficient": 0.05,
            "unfinished_penalty": 0.0,
            "optimizer": {"type": "adamw", "lr": _RATE, "weight_decay": 0.0},
            "device": "cpu",
        },
        "data": {"prompts": [word for word in text[:4000].split() if len(word) <= 15][:200], "held_out": 0.32},
    }
    trainer = build_trainer(Recipe.of(tables, "ptx", "the claim ptx"))
    policy = require_role(trainer.models, "policy", CausalLM, "ppo")
    tokens = torch.tensor(ByteTokenizer().encode(text[-20_000:]))
    windows = tokens.unfold(0, 25, 24)

    @torch.no_grad()
    def state() -> _State:
        loss = -token_logprobs(policy(windows[:, :-1]), windows[:, 1:]).mean().item()
        return _State(loss, evaluate(trainer)["score"])

    _pretrain(policy, torch.tensor(ByteTokenizer().encode(text[:200_000])), seed)
    trainer.models["reference"].load_state_dict(policy.state_dict())
    before = state()
    fit(trainer, progress=False)
    return _Run(before, state())


def _pretrain(model: CausalLM, tokens: Tensor, seed: int) -> None:
    """Train on windows of a text for 150 steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    within = torch.arange(25)
    for _ in range(150):
        windows = tokens[torch.randint(len(tokens) - 25, (32, 1), generator=generator) + within]
        optimizer.zero_grad()
        (-token_logprobs(model(windows[:, :-1]), windows[:, 1:]).mean()).backward()
        optimizer.step()


def _gradient(loss: Tensor, model: RewardModel) -> list[Tensor]:
    parameters = [model.head, *model.trunk.hidden_matrices()]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True))
