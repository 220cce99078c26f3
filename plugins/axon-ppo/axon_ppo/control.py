"""Trainer `ppo_control`: proximal policy optimisation in an environment with discrete actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from axon_core import MODELS, Count, Key, at, config, own, sum_numbers, validate, widen
from axon_core.alignment import token_logprobs
from axon_core.generation import Sampling, sample_tokens
from axon_core.registry import Spec
from axon_core.training import Recipe, new_model, report_progress, to_device
from axon_ppo.base import PPOBase
from axon_ppo.environment import ENVIRONMENTS, Environment
from axon_ppo.maths import gae, whiten

__all__ = ["ControlTrainer"]


class ControlData(config.Config):
    """The `[data]` table of a recipe of `ppo_control`."""

    environment: Spec
    """Where to act, by `type`."""


class ControlTrainer(PPOBase):
    """Maximise the discounted rewards of an environment's episodes (arXiv 1707.06347, Section 5, Algorithm 1).

    In a step, `batch_size` environments run side by side for `length` actions each. Episodes start again with every
    step, so that observations depend only on the step and a resumed run sees the same. Mini-batches are cut from single
    actions.

    The roles are `policy` and `value`, any registered models that map an observation to scores of actions, and to one
    number.

    Args:
        config: the settings.
        models: the modules by role.
        environment: where to act.
    """

    class Config(PPOBase.Config):
        """Settings for environments, in addition to those of all proximal policy optimisation."""

        batch_size: PositiveInt = 8
        """Environments that run side by side."""
        value_clip_range: PositiveFloat | None = None
        """How far a value may move in a step before its loss is clipped; not limited by default, as rewards are not."""
        length: Count = 512
        """Actions in each environment in a step."""
        episodes: Count = 100
        """Episodes of an evaluation."""

    config: Config
    unit = "actions"
    examples = (
        {
            "model": {"type": "perceptron", "hidden": [8]},
            "trainer": {"type": "ppo_control", "batch_size": 4, "length": 6, "minibatches": 2, "episodes": 3},
            "data": {"environment": {"type": "steering", "limit": 5}},
        },
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], environment: Environment) -> None:
        super().__init__(config, models)
        self.policy, self.value, self.environment = models["policy"], models["value"], environment

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Check the tables `model` and `data` too; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("data"):
            data = validate(ControlData, recipe.data)
            with at("environment"):
                ENVIRONMENTS.config(data.environment)
        with at("model"):
            MODELS.config(Spec.of(recipe.model), inputs=1, outputs=1)  # the environment says how many

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe: `data.environment`, and in `model` what policy and value function are."""
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("data"):
            data = validate(ControlData, recipe.data)
            with at("environment"):
                environment = ENVIRONMENTS.build(data.environment)
        models: dict[str, nn.Module] = {}
        for role, outputs in (("policy", environment.n_actions), ("value", 1)):
            with at("model"):
                sizes = {"inputs": environment.n_observed, "outputs": outputs}
                models[role] = new_model(recipe.model, config.seed, role, **sizes)
        return cls(config, models, environment)

    @property
    def rows(self) -> int:
        """How many actions a step takes over all processes."""
        return self.config.batch_size * self.config.length

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the numbers of the step's environments."""
        return {"number": step * self.config.batch_size + torch.arange(self.config.batch_size)}

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Act, and return one row for each action, with what it is to be credited with.

        `episode` is the mean return of the episodes that ended in this step; where none did, it is left out.
        """
        c, steps = self.config, list[dict[str, Tensor]]()
        numbers = batch["number"].tolist()
        uniform = torch.stack([key("act", i).uniform((c.length,)) for i in numbers])
        begun, earned, finished = (
            [1] * len(numbers),
            torch.zeros(len(numbers), dtype=torch.float32),
            {"episodes": 0.0, "returns": 0.0},
        )
        observation = self.environment.reset([key("episode", i, 0).seed for i in numbers])
        for t in range(c.length):
            action = sample_tokens(self._logits(observation), Sampling(), uniform[:, t])
            found = self.environment.step(action)
            after, over = found.observation, found.terminated | found.truncated
            steps.append(
                {
                    "observation": observation,
                    "action": action,
                    "reward": found.reward,
                    "after": after,
                    "terminated": found.terminated,
                    "over": over if t + 1 < c.length else torch.ones_like(over),
                }
            )
            earned += found.reward
            finished["episodes"] += over.sum().item()
            finished["returns"] += earned[over].double().sum().item()
            earned[over] = 0
            if t + 1 == c.length:
                break
            observation = after.clone()
            for row in over.nonzero()[:, 0].tolist():
                observation[row] = self.environment.restart(row, key("episode", numbers[row], begun[row]).seed)
                begun[row] += 1
        acted = {
            name: to_device(torch.stack([step[name] for step in steps], 1), c.device, c.dtype) for name in steps[0]
        }
        first = int(batch["number"][0]) % c.batch_size if len(numbers) else 0
        rows, finished = self._credited(acted, first), sum_numbers(finished)
        if finished["episodes"]:
            rows["episode"] = torch.full_like(rows["value"], finished["returns"] / finished["episodes"])
        return rows

    def _credited(self, acted: dict[str, Tensor], first: int) -> dict[str, Tensor]:
        """Return actions `(b t)` as rows `(b·t)`, with probabilities, values, advantages and returns."""
        c = self.config
        values, following = (self._values(acted[name]) for name in ("observation", "after"))
        following = following.masked_fill(acted["terminated"], 0)
        advantages, returns = gae(
            acted["reward"], values, following, acted["over"], gamma=c.gamma, gae_lambda=c.gae_lambda
        )
        rows = {
            "observation": acted["observation"],
            "action": acted["action"],
            "logprob": token_logprobs(self._policy(acted["observation"]), acted["action"]),
            "value": values,
            "advantage": whiten(advantages, torch.ones_like(acted["over"])),
            "return": returns,
            "number": first * c.length + torch.arange(values.numel(), device=c.device).view_as(values),
        }
        return {name: column.flatten(0, 1) for name, column in rows.items()}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the number of actions."""
        names = (*self.PER_ACTION, *(["objective/return"] if "episode" in data else []))
        return dict.fromkeys(names, float(len(data["action"])))

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the sums over the actions of `terms` and, if an episode ended, of the mean return."""
        logits = self._policy(data["observation"])
        terms = self.terms(
            logprobs=token_logprobs(logits, data["action"]),
            old_logprobs=data["logprob"],
            advantages=data["advantage"],
            values=self._values(data["observation"]),
            old_values=data["value"],
            returns=data["return"],
            entropies=self.entropies(logits),
        )
        return {**terms, "objective/return": data["episode"].sum()} if "episode" in data else terms

    def evaluate(self) -> dict[str, float]:
        """Return the mean `return` and `length` of whole episodes of the most likely actions; `loss` is −`return`."""
        total = {"return": 0.0, "length": 0.0}
        if mine := own(range(self.config.episodes)):
            total = self._totals([Key((self.config.seed, "evaluate"))(i).seed for i in mine])
        means = {name: value / self.config.episodes for name, value in sum_numbers(total).items()}
        return {"loss": -means["return"], **means}

    def _totals(self, seeds: Sequence[int]) -> dict[str, float]:
        """Return the summed `return` and `length` of episodes of the most likely actions, one for each seed."""
        n = len(seeds)
        observation = self.environment.reset(seeds)
        report_progress(0, n)
        going, returns, lengths = torch.ones(n, dtype=torch.bool), *torch.zeros(2, n, dtype=torch.float32)
        while going.any():
            found = self.environment.step(sample_tokens(self._logits(observation), Sampling(temperature=0)))
            returns += torch.where(going, found.reward, 0)
            lengths += going
            going &= ~(found.terminated | found.truncated)
            observation = found.observation
            report_progress(n - int(going.sum()), n)
        return {"return": returns.double().sum().item(), "length": lengths.double().sum().item()}

    def _policy(self, observation: Float[Tensor, "... o"]) -> Float[Tensor, "... a"]:
        return widen(self.policy(observation.to(self.config.dtype)))

    def _values(self, observation: Float[Tensor, "... o"]) -> Float[Tensor, ...]:
        return widen(self.value(observation.to(self.config.dtype)).squeeze(-1))

    def _logits(self, observation: Float[Tensor, "b o"]) -> Float[Tensor, "b a"]:
        """Return the policy's scores for environments, which are on the CPU."""
        return self._policy(observation.to(self.config.device)).cpu()
