"""Trainer `ppo`: a language model learns from the rewards of what it writes, without moving far from a reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from axon_core import CheckpointError, Count, Key, at, sum_numbers, validate
from axon_core.alignment import (
    Sequences,
    require_role,
    response_text,
    sample_responses,
    score_responses,
    token_logprobs,
)
from axon_core.checkpoint import digest
from axon_core.generation import evaluation_mode
from axon_core.interfaces import CausalLM
from axon_core.text import PAD, EncodedPrompt, Order
from axon_core.training import Recipe, coverage, evenly_spaced, track_own
from axon_ppo.auxiliary import AuxiliaryLoss
from axon_ppo.base import PPOBase
from axon_ppo.maths import adapted_coefficient, k1, k2, k3
from axon_ppo.prompts import PromptData
from axon_ppo.reward import ModelReward, Reward
from axon_ppo.roles import build_roles, check_roles, check_tables, checksum
from axon_ppo.rollout import action_logits, action_values, compute_advantages, score_tokens

__all__ = ["PPOTrainer"]

_AUXILIARY = "auxiliary/"
_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
_ROWS = 64  # prompts of an evaluation that run at once


class PPOTrainer(PPOBase):
    """Maximise the reward of responses minus β KL(π ‖ π_ref), by proximal policy optimisation of each token.

    The objective is that of arXiv 1707.06347, Section 3, Eq. 7, and its Algorithm 1.

    A token earns −β (log π − log π_ref), and the last one also the response's score (arXiv 1909.08593, 2203.02155). All
    log-probabilities are those at the temperature that responses are drawn at, and dropout is off throughout.
    The roles are `policy`, a `CausalLM`; `value`, a `ValueModel` or another model that gives each prefix a value;
    `reference`, frozen; and `reward`, frozen, if the reward is a `ModelReward`.

    Args:
        config: the settings.
        models: the modules by role.
        data: the prompts, and the tokenizer of all roles.
        reward: what responses are worth.
        auxiliary: further terms of the policy's loss, such as that of pre-training.

    Raises:
        UsageError: vocabularies or tokenizers of the roles differ.
        ContextError: a prompt and its response are longer than a role's context; the message names it.
    """

    class Config(PPOBase.Config):
        """Settings for language models, in addition to those of all proximal policy optimisation."""

        value_weight: NonNegativeFloat = 0.1
        """Weight c₁ of the value function's loss."""
        gamma: float = Field(default=1.0, ge=0, le=1)
        """Discount γ: by default none, so that all of a response shares its score."""
        response_tokens: Count = 64
        """The longest response."""
        temperature: PositiveFloat = 1.0
        """The divisor of the logits for every probability."""
        kl_coefficient: NonNegativeFloat = 0.05
        """β at the start."""
        kl_target: PositiveFloat | None = None
        """The KL divergence of a response, in nats, that β is adapted to; left out, β stays."""
        kl_horizon: PositiveFloat = 10_000
        """Responses over which β is adapted."""
        kl_estimator: Literal["k1", "k2", "k3"] = "k1"
        """How a token's KL divergence is estimated."""
        unfinished_penalty: NonNegativeFloat = 1.0
        """What is subtracted from the score of a response that was cut off before a token that ends it.

        A fixed score would be a prize to a policy that does worse than that: a reward has its 0 where it likes."""
        eval_prompts: PositiveInt = 1_000
        """The most held-out prompts that an evaluation responds to; if there are more, they are evenly spaced."""

    config: Config
    unit = "tokens"
    examples = tuple(
        {
            "model": {
                "policy": {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 16},
                "reward": {"type": "regex", "pattern": "[a-z]"},
            },
            "trainer": {"type": "ppo", "batch_size": 4, "response_tokens": 6, **options},
            "data": {"prompts": ["once", "upon a", "time", "there was", "a king"], "held_out": 0.2},
        }
        for options in (
            {"entropy_weight": 0.01},
            {"minibatches": 2, "kl_target": 1.0, "kl_estimator": "k3", "temperature": 0.7, "unfinished_penalty": 0.0},
        )
    )

    def __init__(
        self,
        config: Config,
        models: Mapping[str, nn.Module],
        data: PromptData,
        reward: Reward,
        auxiliary: AuxiliaryLoss | None = None,
    ) -> None:
        if isinstance(reward, ModelReward):
            models = {**models, "reward": reward.model}
        super().__init__(config, models)
        self.policy, self.reference = (require_role(models, name, CausalLM, "ppo") for name in ("policy", "reference"))
        self.value = models["value"]
        self.data, self.reward, self.auxiliary = data, reward, auxiliary
        self.kl_coefficient = config.kl_coefficient
        check_roles(self.models, data, reward, config.response_tokens)
        self._order = Order(len(data.train), Key((config.seed, "prompts")))
        self._estimate = _ESTIMATORS[config.kl_estimator]

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Check the tables `model` and `data` too; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        check_tables(recipe)

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe's tables `model` (see `Roles`), `data` and `trainer`.

        A policy in a folder is loaded from there with its tokenizer, and loaded again whenever the run is resumed: it
        is the reference.
        """
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        parts = build_roles(recipe, config.seed, saved)
        return cls(config, parts.models, parts.data, parts.reward, parts.auxiliary)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the prompts of a step: `prompt`, their places in the data; their `number` in the step; and `tokens`.

        The tokens let a resumed run recognise other data.
        """
        size = self.config.batch_size
        picks = self._order.batch(step, size)
        rows = [torch.tensor(self.data.train[pick].tokens) for pick in picks.tolist()]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        batch = {"prompt": picks, "tokens": tokens, "number": torch.arange(size)}
        if self.auxiliary is not None:
            batch |= {_AUXILIARY + name: rows for name, rows in self.auxiliary.batch(step, size).items()}
        return batch

    def data_digest(self) -> str:
        """Return a checksum of the prompts, of what the auxiliary loss learns, and of a reward model's weights."""
        judge = checksum(self.reward.model) if isinstance(self.reward, ModelReward) else ""
        return digest(self.data.digest, getattr(self.auxiliary, "digest", ""), judge)

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Respond to the prompts, and return what each action is credited with.

        Per action `(b n)`, at the place of its token: `logprob`, `value`, `advantage`, `return`. Per response `(b)`:
        `score`, `kl`, `surprisal`, `reward`, `coefficient`.
        """
        c = self.config
        prompts = [self.data.train[pick] for pick in batch["prompt"].tolist()]
        acted = self.act(prompts, [key(number).seed for number in batch["number"].tolist()])
        credit = compute_advantages(
            acted["score"],
            acted.pop("token_kl"),
            acted["value"],
            acted["scored"],
            coefficient=self.kl_coefficient,
            gamma=c.gamma,
            gae_lambda=c.gae_lambda,
        )
        coefficient = torch.full_like(acted["score"], self.kl_coefficient)
        given = {name: rows for name, rows in batch.items() if name == "number" or name.startswith(_AUXILIARY)}
        return {**acted, **credit, "coefficient": coefficient, **given}

    def act(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Return responses to the prompts, their scores, and what the models give for every action; 0 elsewhere."""
        c, tokenizer = self.config, self.data.tokenizer
        asked = [prompt.tokens for prompt in prompts]
        how = {"temperature": c.temperature, "vocab_size": tokenizer.vocab_size}
        pieces = c.minibatches * c.micro_batches
        with self._precision(), torch.no_grad():
            responses = sample_responses(
                self.policy, asked, seeds, max_new_tokens=c.response_tokens, ends=tokenizer.ends, **how
            )
            written = list(zip(asked, (response.tokens for response in responses), strict=True))
            texts = [[response_text(tokenizer, prompt, response)] for prompt, response in written]
            finished = [[response.finished] for response in responses]
            named = [prompt.named for prompt in prompts]
            score = score_responses(self.reward, named, texts, finished, asked)[:, 0]
            score -= c.unfinished_penalty * (~torch.tensor(finished)[:, 0]).double()
            rows = Sequences.of(written).to(c.device)
            said = score_tokens(self.policy, self.reference, self.value, rows, pieces=pieces, **how)
        token_kl = self._estimate(said["logprob"], said.pop("reference"))
        return {
            "tokens": rows.tokens,
            "valid": rows.valid,
            "scored": rows.scored,
            **said,
            "token_kl": token_kl,
            "score": score.to(c.device, said["logprob"].dtype),
            "kl": token_kl.sum(1),
            "surprisal": -said["logprob"].sum(1),
        }

    def minibatches(self, data: dict[str, Tensor], key: Key) -> Iterator[dict[str, Tensor]]:
        """Yield the mini-batches of all epochs; after the last update β is adapted to the measured divergence."""
        yield from super().minibatches(data, key)
        c = self.config
        if c.kl_target is not None:
            total = sum_numbers({"kl": data["kl"].sum().item(), "n": float(len(data["kl"]))})
            kl, n = total["kl"] / total["n"], int(total["n"])
            self.kl_coefficient = adapted_coefficient(
                self.kl_coefficient, kl, target=c.kl_target, n=n, horizon=c.kl_horizon
            )

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float | Tensor]:
        """Return the number of actions, or of responses, and what the auxiliary loss counts."""
        counts: dict[str, float | Tensor] = dict.fromkeys(self.PER_ACTION, data["scored"].sum())
        counts |= dict.fromkeys(_PER_RESPONSE, float(len(data["scored"])))
        return counts if self.auxiliary is None else {**counts, **self.auxiliary.counts(_auxiliary(data))}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the sums of `terms` over the actions, of what is reported of responses, and of the auxiliary loss."""
        rows = Sequences(data["tokens"], data["valid"], data["scored"])
        logits, tokens = action_logits(self.policy, rows, self.config.temperature, self.data.tokenizer.vocab_size)
        terms = self.terms(
            logprobs=token_logprobs(logits, tokens),
            old_logprobs=data["logprob"][rows.scored],
            advantages=data["advantage"][rows.scored],
            values=action_values(self.value, rows),
            old_values=data["value"][rows.scored],
            returns=data["return"][rows.scored],
            entropies=self.entropies(logits),
        )
        terms |= {name: data[column].sum() for name, column in _PER_RESPONSE.items() if column is not None}
        terms["objective/length"] = rows.scored.sum().to(data["kl"].dtype)
        return terms if self.auxiliary is None else {**terms, **self.auxiliary.loss(self.policy, _auxiliary(data))}

    def evaluate(self) -> dict[str, float]:
        """Return the mean `score` and `kl` of responses to the held-out prompts, and their length, if there are any.

        `loss` is the training objective with the initial β: −(score − β kl). At most `eval_prompts` are responded to.
        If those are not all, `prompts` says how many were, and `held_out_prompts` how many there are.
        """
        held_out, key = self.data.held_out, Key((self.config.seed, "evaluate"))
        numbers = evenly_spaced(len(held_out), self.config.eval_prompts)
        total: dict[str, float] = {"score": 0.0, "kl": 0.0, "length": 0.0}
        groups = [numbers[first : first + _ROWS] for first in range(0, len(numbers), _ROWS)]
        for some in track_own(groups, len(numbers), len):
            acted = self.act([held_out[i] for i in some], [key(i).seed for i in some])
            for name, found in (("score", acted["score"]), ("kl", acted["kl"]), ("length", acted["scored"])):
                total[name] += found.sum().item() / len(numbers)
        if not numbers:
            return {}
        total = sum_numbers(total)
        loss = self.config.kl_coefficient * total["kl"] - total["score"]
        return {"loss": loss, **total, **coverage("prompts", len(numbers), len(held_out))}

    def sample(self) -> str:
        """Return a prompt and the response to it."""
        prompt, tokenizer = (self.data.held_out or self.data.train)[0], self.data.tokenizer
        with evaluation_mode(self.policy):
            (response,) = sample_responses(
                self.policy,
                [prompt.tokens],
                [0],
                max_new_tokens=self.config.response_tokens,
                temperature=self.config.temperature,
                ends=tokenizer.ends,
                vocab_size=tokenizer.vocab_size,
            )
        return prompt.text + response_text(tokenizer, prompt.tokens, response.tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return β, and a checksum of the reference, which is not saved."""
        return {"kl_coefficient": self.kl_coefficient, "reference": checksum(self.reference)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore β. Raises `CheckpointError` if the run started with another reference."""
        if state["reference"] != checksum(self.reference):
            raise CheckpointError(
                "the reference is not the one that the run started with; restore the policy's first model "
                "in its folder (model.policy.init), or start a new run"
            )
        self.kl_coefficient = state["kl_coefficient"]

    def _precision(self) -> torch.autocast:
        """Return the precision of the loss: the ratio of probabilities is then exactly 1 before the first update."""
        kind = torch.device(self.config.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16")


_PER_RESPONSE: Mapping[str, str | None] = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "objective/entropy": "surprisal",
    "objective/rlhf_reward": "reward",
    "objective/kl_coefficient": "coefficient",
    "objective/length": None,
}


def _auxiliary(data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_AUXILIARY): rows for name, rows in data.items() if name.startswith(_AUXILIARY)}
