"""Trainer `advise`: Q-learning with feedback from several trainers of unknown reliability."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor

from axon_advise.estimation import Answers, Beliefs
from axon_advise.feedback import FEEDBACKS, FeedbackSource, checked_rates
from axon_advise.learning import Dynamics, Learners, LearningSettings, Played, play_episodes, shaped_logits
from axon_advise.reliability import RELIABILITIES, Reliability, first_beliefs
from axon_advise.report import TrainerSetReport, describe_trainers, report_set
from axon_advise.shaping import trainer_scores
from axon_advise.tables import AdviceTables
from axon_advise.tabular import TabularEnvironment, expected_return, optimal_actions, value_iteration
from axon_core import ConfigError, Count, Key, at, config, validate
from axon_core.registry import Spec
from axon_core.training import DirectTrainer, Recipe, report_progress
from axon_ppo import ENVIRONMENTS

__all__ = ["AdviceData", "AdviseTrainer", "TrainerSet"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.,+-]{0,39}")


class TrainerSet(config.Config):
    """Trainers who advise the same learners, and what these believe of them."""

    trainers: tuple[Spec, ...] = ()
    """Who gives feedback, each a registered source by `type`; none, if they are left out."""
    reliability: Spec = Field(default_factory=lambda: Spec.of("em"))
    """What learners believe of them: learnt by `em` or `vi`, `known`, or `equal`, a majority vote."""
    confidence: float = Field(default=1.0, gt=0, le=1)
    """Trainers are asked only where their answers so far give no action a larger probability; 1 asks everywhere."""


class AdviceData(config.Config):
    """The `[data]` table of a recipe of `advise`."""

    environment: Spec
    """Where to act, by `type`; it must be a `TabularEnvironment`."""
    sets: dict[str, TrainerSet] = Field(min_length=1)
    """The sets of trainers that are compared, by name; each advises learners of its own."""

    @field_validator("sets")
    @classmethod
    def _named(cls, sets: dict[str, TrainerSet]) -> dict[str, TrainerSet]:
        for name in sets:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a name has 1 to 40 letters, digits, spaces or any of _ . , + -, got {name!r}")
        return sets


class AdviseTrainer(DirectTrainer):
    """Learn values from rewards and feedback, and each trainer's reliability (arXiv 2111.08596, Abstract).

    In a step, every learner plays `episodes` episodes (`play_episodes`), and then judges its trainers by all answers
    so far (`Reliability.update`), with the prior softmax(Q / `temperature`). `batch_size` learners have each set of
    trainers; learners are independent.

    Args:
        config: the settings.
        environment: where learners act.
        sets: the sets of trainers.

    Raises:
        ConfigError: a set breaks a rule.
    """

    class Config(DirectTrainer.Config):
        """Settings of the learning."""

        batch_size: Count = 50
        """Independent learners with each set of trainers."""
        steps: Count = 150
        """Steps of the loop, each of `episodes` episodes."""
        episodes: Count = 10
        """Episodes of each learner in a step; then reliabilities are estimated."""
        gamma: float = Field(default=0.9, ge=0, le=1)
        """γ, what a reward one action later is worth."""
        alpha: float = Field(default=0.05, gt=0, le=1)
        """α, how far a value moves to its target."""
        temperature: PositiveFloat = 1.5
        """What values are divided by in the policy, softmax(Q / temperature)."""
        rewards: bool = True
        """Whether learners get the environment's rewards; otherwise they learn from feedback alone."""
        several_optimal: bool = False
        """Whether several actions of a state may be right; otherwise the first of those with the highest value is."""
        evaluated: NonNegativeInt = 10
        """Learners of each set whose policy is evaluated."""

    config: Config
    trainable = ("tables",)
    unit = "episodes"
    next_command = "axon advise play {run}"
    examples = (
        {
            "trainer": {"type": "advise", "batch_size": 3, "episodes": 2, "steps": 2, "evaluated": 2},
            "data": {
                "environment": {"type": "grid", "size": 3, "limit": 20},
                "sets": {"none": {}, "two": {"trainers": ["oracle", "contrary"]}},
            },
        },
    )

    def __init__(self, config: Config, environment: TabularEnvironment, sets: Mapping[str, TrainerSet]) -> None:
        self.environment, self.sets = environment, dict(sets)
        with at("data", "sets"):
            built = {name: _build(name, part) for name, part in self.sets.items()}
        self.feedback: Mapping[str, list[FeedbackSource]] = {name: sources for name, (sources, _) in built.items()}
        self.reliabilities = {name: reliability for name, (_, reliability) in built.items()}
        most = max(len(sources) for sources in self.feedback.values())
        table = environment.table
        size = {"states": table.n_states, "actions": table.n_actions, "trainers": most}
        self.tables = AdviceTables.build(learners=len(self.sets) * config.batch_size, **size)
        super().__init__(config, {"tables": self.tables})
        for name in self.sets:
            first = self._padded(self.reliabilities[name].start(self.truth(name, 0)), 0.5)
            self._believe(name, first_beliefs(np.tile(first, (config.batch_size, 1))))
        self.optimal = optimal_actions(value_iteration(table, min(config.gamma, 1.0)), several=config.several_optimal)
        self.history: dict[str, list[Tensor]] = {"returns": [], "consistency": []}

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Check the table `data` too; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("data"):
            data = validate(AdviceData, recipe.data)
            with at("environment"):
                ENVIRONMENTS.config(data.environment)
            for name, part in data.sets.items():
                with at("sets"):
                    _build(name, part)

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe: `data.environment`, and the sets of trainers in `data.sets`.

        Raises:
            ConfigError: a table breaks a rule, or the environment has no table.
        """
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("data"):
            data = validate(AdviceData, recipe.data)
            with at("environment"):
                environment = ENVIRONMENTS.build(data.environment)
                if not isinstance(environment, TabularEnvironment):
                    message = f"must be an environment with a table, as pacman, grid, got {data.environment.type!r}"
                    raise ConfigError([(("type",), message)])
        return cls(config, environment, data.sets)

    @property
    def settings(self) -> LearningSettings:
        """How learners act and learn."""
        c = self.config
        return LearningSettings(c.gamma, c.alpha, c.temperature, self.environment.config.limit, c.several_optimal)

    def rows(self, name: str) -> slice:
        """Return the places of a set's learners."""
        first = list(self.sets).index(name) * self.config.batch_size
        return slice(first, first + self.config.batch_size)

    def truth(self, name: str, episode: int) -> list[float | None]:
        """Return the true consistencies of a set's trainers, where they are known."""
        return [source.consistency(episode) for source in self.feedback[name]]

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return numbers for the step's rows, one for each learner."""
        n = len(self.sets) * self.config.batch_size
        return {"number": step * n + torch.arange(n)}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the episodes for `length`, learners for `loss`, and the episodes of each set for its return."""
        learners = float(len(data["number"]))
        episodes = learners * self.config.episodes
        each = {f"return/{name}": episodes / len(self.sets) for name in self.sets}
        return {"length": episodes, "loss": learners, **each}

    def update(self, data: dict[str, Tensor], key: Key) -> Mapping[str, Tensor]:
        """Let all learners play and judge their trainers; see the class.

        `loss` is the mean squared temporal difference, `length` the actions in an episode.
        """
        c = self.config
        step = int(data["number"][0]) // len(data["number"])
        learners = self.learners()
        generator = np.random.default_rng(key("play").seed)
        played = play_episodes(learners, self.dynamics(step * c.episodes), self.settings, c.episodes, generator.random)
        for name in self.sets:
            answers = self.answers(self.rows(name))
            rows = self.rows(name)
            before = Beliefs(self.tables.consistency[rows].numpy(), self.tables.weight[rows].numpy())
            self._believe(name, self.reliabilities[name].update(answers, before))
        self.history["returns"].append(torch.from_numpy(played.returns.mean(1)).float())
        self.history["consistency"].append(self.tables.consistency.float())
        return self._sums(played)

    def learners(self) -> Learners:
        """Return the tables as arrays that share their memory, with scores computed from the answers."""
        tables = self.tables
        q, good, bad, answers, weight = (
            x.numpy() for x in (tables.q, tables.good, tables.bad, tables.answers, tables.weight)
        )
        scores = np.zeros_like(q)
        trial, state = np.nonzero(answers)
        delta = np.subtract(good[trial, state], bad[trial, state], dtype=np.float64)
        scores[trial, state] = trainer_scores(delta, weight[trial])
        return Learners(q, scores, good, bad, answers, weight)

    def answers(self, rows: slice) -> Answers:
        """Return all answers to the learners in these places, with the prior softmax(Q / temperature)."""
        tables = self.tables
        q, good, bad, answers = (x[rows].numpy() for x in (tables.q, tables.good, tables.bad, tables.answers))
        trial, state = np.nonzero(answers)
        return Answers.of(
            good[trial, state],
            bad[trial, state],
            q[trial, state] / self.config.temperature,
            trial,
            len(q),
            several=self.config.several_optimal,
        )

    def dynamics(self, episode: int) -> Dynamics:
        """Return environment and trainers as they are after these episodes."""
        table, trainers = self.environment.table, self.tables.config.trainers
        if not self.config.rewards:
            table = type(table)(table.following, table.probability, np.zeros_like(table.reward), table.terminated)
        rates = np.zeros((2, len(self.sets), table.n_states, table.n_actions, trainers))
        for g, name in enumerate(self.sets):
            for m, source in enumerate(self.feedback[name]):
                with at("data", "sets", name, "trainers", str(m)):
                    rates[:, g, :, :, m] = checked_rates(source, self.optimal, episode)
        size = self.config.batch_size
        confidence = np.repeat([part.confidence for part in self.sets.values()], size)
        group = np.repeat(np.arange(len(self.sets)), size)
        return Dynamics(table, self.environment.start.cumsum(), rates[0], rates.sum(0), group, confidence)

    def evaluate(self) -> dict[str, float]:
        """Return the expected return of the most likely actions, exactly, as the mean of `evaluated` learners.

        `return` is the mean over the sets, `return/<set>` that of each; `loss` is −`return`.
        """
        found: dict[str, float] = {}
        learners, n = self.learners(), min(self.config.evaluated, self.config.batch_size)
        logits = shaped_logits(learners.q, learners.scores, self.settings)
        total = n * len(self.sets)
        report_progress(0, total)
        for i, name in enumerate(self.sets if n else ()):
            values: list[float] = []
            for row in range(self.rows(name).start, self.rows(name).start + n):
                policy = logits[row].argmax(1)
                values.append(expected_return(self.environment, policy))
                report_progress(i * n + len(values), total)
            found[f"return/{name}"] = float(np.mean(values))
        mean = float(np.mean(list(found.values()))) if found else 0.0
        return {"loss": -mean, "return": mean, **found} if found else {}

    def reports(self) -> dict[str, TrainerSetReport]:
        """Return what is known of each set's trainers, see `report_set`."""
        episode = len(self.history["returns"]) * self.config.episodes
        found: dict[str, TrainerSetReport] = {}
        for name, sources in self.feedback.items():
            rows, m = self.rows(name), len(sources)
            kinds = [spec.type for spec in self.sets[name].trainers]
            part = (x[rows].numpy()[..., :m, :] for x in (self.tables.good, self.tables.bad))
            estimates = self.tables.consistency[rows, :m].numpy()
            found[name] = report_set(kinds, self.truth(name, episode), estimates, *part)
        return found

    def sample(self) -> str:
        """Return the trainers of each set with their estimated reliabilities."""
        return "\n".join(line for name, report in self.reports().items() for line in describe_trainers(name, report))

    def export(self, folder: Path) -> None:
        """Write the tables of the first learner of each set."""
        size = self.config.batch_size
        sizes = self.tables.config.model_dump() | {"learners": len(self.sets)}
        first = AdviceTables.build(**sizes)
        first.load_state_dict({name: x[::size].clone() for name, x in self.tables.state_dict().items()})
        first.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the history of returns and consistencies, for the curves."""
        return {name: torch.stack(rows) for name, rows in self.history.items() if rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the history."""
        self.history = {name: list(state[name]) if name in state else [] for name in self.history}

    def _believe(self, name: str, beliefs: Beliefs) -> None:
        rows = self.rows(name)
        self.tables.consistency[rows] = torch.from_numpy(np.ascontiguousarray(beliefs.consistency))
        self.tables.weight[rows] = torch.from_numpy(np.ascontiguousarray(beliefs.weight))

    def _padded(self, numbers: Float[ndarray, " m"], value: float) -> Float[ndarray, " m"]:
        missing = self.tables.config.trainers - len(numbers)
        return np.pad(np.asarray(numbers, dtype=np.float64), (0, missing), constant_values=value)

    def _sums(self, played: Played) -> Mapping[str, Tensor]:
        each = {f"return/{name}": played.returns[self.rows(name)].sum() for name in self.sets}
        sums = {"length": float(played.steps.sum()), "loss": played.squared_error.sum(), **each}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in sums.items()}


def _build(name: str, part: TrainerSet) -> tuple[list[FeedbackSource], Reliability]:
    """Return the parts of a set. Raises `ConfigError` if an option breaks a rule."""
    sources: list[FeedbackSource] = []
    for i, spec in enumerate(part.trainers):
        with at(name, "trainers", str(i)):
            sources.append(FEEDBACKS.build(spec))
    with at(name, "reliability"):
        return sources, RELIABILITIES.build(part.reliability)
