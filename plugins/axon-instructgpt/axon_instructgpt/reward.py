"""Trainer `reward`: a reward model learns from rankings."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from axon_core import ContractError, Key, assembled, at, sum_numbers, validate
from axon_core.alignment import Sequences, require_role
from axon_core.generation import evaluation_mode
from axon_core.interfaces import CausalLM
from axon_core.registry import Spec
from axon_core.text import Order, read_comparisons, read_demonstrations
from axon_core.training import (
    InitialModel,
    Recipe,
    Trainer,
    coverage,
    evenly_spaced,
    run_evaluation,
    to_device,
    track_own,
)
from axon_dpo import PREFERENCE_LOSSES
from axon_instructgpt.ranking import mean_over_pairs, ranking_loss
from axon_instructgpt.rankings import Ranked, RankedConfig, RankedData, collate_ranked
from axon_instructgpt.reward_model import RewardModel
from axon_instructgpt.start import begin

__all__ = ["RewardTrainer"]

_EXAMPLE = Path(__file__).with_name("example")
_NAMES = ("loss", "rewards/accuracies", "rewards/margins")


class RewardTrainer(Trainer):
    """Minimise −1/C(K, 2) Σ log σ(r_i − r_j − m) over the pairs of each prompt's K ranked answers, i the better one.

    Source: arXiv 2203.02155, Section 3.5, Eq. 1, with the margins m of arXiv 2307.09288, Section 3.2.2. All answers of
    a prompt are in one batch element, and each runs once. The role `model` is a `RewardModel`, made of any `CausalLM`.

    Metrics are means over prompts: `rewards/accuracies`, the share of its pairs in the right order, and
    `rewards/margins`, by how much the better answer's score is higher. The exported model scores the demonstrations 0
    on average (Section 3.5): their mean score is stored with it.
    """

    class Config(Trainer.Config):
        """Settings of reward models, in addition to those of every trainer."""

        loss: Spec = Field(default_factory=lambda: Spec(type="sigmoid"), validate_default=True)
        """The preference loss of a pair by `type`, as for the trainer `dpo`, at Δ = r_i − r_j − m, with `beta` 1 where
        it is left out."""
        eval_prompts: PositiveInt = 5_000
        """The most held-out prompts that an evaluation reads; if there are more, they are evenly spaced."""

    config: Config
    unit = "prompts"
    trainable = ("model",)
    examples = tuple(
        {
            "model": {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 32},
            "trainer": {"type": "reward", "batch_size": 3},
            "data": {"path": str(_EXAMPLE / name), "held_out": 0.25},
        }
        for name in ("rankings.jsonl", "comparisons.jsonl")
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: RankedData) -> None:
        super().__init__(config, models)
        self.model = require_role(models, "model", RewardModel, "reward")
        self.data = data
        self._order = Order(len(data.train), Key((config.seed, "order")))
        with at("trainer", "loss"):
            self.objective = PREFERENCE_LOSSES.build(_unscaled(config.loss))
            told = ((pair for one in part for pair in one.judgements()) for part in (data.train, data.held_out))
            self.objective.introduce(data.raters, *told)

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Check the loss, and the tables `model` and `data`, too; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("trainer", "loss"):
            PREFERENCE_LOSSES.config(_unscaled(validate(cls.Config, recipe.trainer.options).loss))
        with at("model"):
            InitialModel.check(recipe.model)
        with at("data"):
            validate(RankedConfig, recipe.data).check_template()

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build it from a recipe's tables `model`, `data` and `trainer`; see `Trainer.from_recipe`.

        `model` holds a new language model's `type` and options, or `init`, the folder of a saved one, or of a saved
        reward model.

        Raises:
            ContractError: the model is neither a `CausalLM` nor a reward model.
        """
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("data"):
            settings = validate(RankedConfig, recipe.data)
            records = read_comparisons(settings.path, settings)
            given = read_demonstrations(settings.demonstrations) if settings.demonstrations else []
        text = "".join(text for record in (*records, *given) for text in record.texts())
        model, tokenizer = begin(recipe, saved, config.seed, settings.tokenizer, text)
        if isinstance(model, CausalLM):
            with Key((config.seed, "head")).seeded("cpu"):
                model = RewardModel.of(model)
        if not isinstance(model, RewardModel):
            raise ContractError(f"the trainer reward needs a CausalLM or a RewardModel, got a {type(model).__name__}")
        with at("data"):
            data = RankedData.of(records, tokenizer, model.context, settings, given)
        return cls(config, {"model": model}, data)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the prompts of a step with their answers: `tokens` and `valid` `(b k n)`, and `margin` `(b)`."""
        return collate_ranked([self.data.train[i] for i in self._order.batch(step, self.config.batch_size).tolist()])

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the number of prompts."""
        return dict.fromkeys(_NAMES, float(len(data["margin"])))

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the loss and the metrics, summed over the prompts."""
        scores, present = self.scores(data)
        gaps = (scores[:, :, None] - scores[:, None, :]).detach()
        raters = data["rater"][:, None, None] if "rater" in data else None
        loss = ranking_loss(scores, present, data["margin"], self.objective.by(raters).of)
        terms = (loss, mean_over_pairs((gaps > 0).to(gaps.dtype), present), mean_over_pairs(gaps, present))
        return {name: values.sum() for name, values in zip(_NAMES, terms, strict=True)}

    def scores(self, data: Mapping[str, Tensor]) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Return the score of each answer, and which answers exist; each is run once."""
        present = data["valid"].any(-1)
        found = self.model.whole(data["tokens"][present], data["valid"][present])
        return found.new_zeros(present.shape).masked_scatter(present, found), present

    def evaluate(self) -> dict[str, float]:
        """Return means of the loss and the metrics over the held-out prompts, at most `eval_prompts` of them.

        If those are not all, `prompts` says how many were read, and `held_out_prompts` how many there are.
        """
        held_out = self._evaluated()
        totals: dict[str, float] = dict.fromkeys(_NAMES, 0.0)
        for _, data in self._batches(held_out):
            for name, total in self.loss(data).items():
                totals[name] += total.double().item()
        means = {name: total / len(held_out) for name, total in sum_numbers(totals).items()}
        return {**means, **coverage("prompts", len(held_out), len(self.data.held_out))}

    def before_step(self, step: int) -> None:
        """Let the loss learn about the raters from held-out prompts, at most `eval_prompts` of them."""
        self.objective.learn(step, lambda: run_evaluation(self, self._compare))

    def state_dict(self) -> dict[str, Any]:
        """Return what the loss has learnt."""
        learnt = self.objective.state_dict()
        return {"loss": learnt} if learnt else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `CheckpointError` if it belongs to other raters."""
        self.objective.load_state_dict(state.get("loss", {}))

    def _compare(self) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Return r_i − r_j of all pairs of the held-out prompts' answers, i the better one, and their raters."""
        held_out = self._evaluated()
        sizes = [len(one.answers) for one in held_out]
        scores = torch.zeros(len(held_out), max(sizes), dtype=torch.float64)
        for first, data in self._batches(held_out):
            found, _ = self.scores(data)
            scores[first : first + len(found), : found.shape[1]] = found.double().cpu()
        scores = assembled(scores)
        pairs = [(n, i, j) for n, size in enumerate(sizes) for i, j in combinations(range(size), 2)]
        number, i, j = torch.tensor(pairs).unbind(1)
        raters = torch.tensor([one.rater or 0 for one in held_out])
        return scores[number, i] - scores[number, j], raters[number]

    def _evaluated(self) -> list[Ranked]:
        """Return the held-out prompts that an evaluation reads."""
        rankings = self.data.held_out
        return [rankings[i] for i in evenly_spaced(len(rankings), self.config.eval_prompts)]

    def _batches(self, ranked: Sequence[Ranked]) -> Generator[tuple[int, dict[str, Tensor]]]:
        """Yield the first one's place, and data of the prompts; of several processes to each its own part."""
        size = self.config.batch_size
        for first in track_own(range(0, len(ranked), size), len(ranked), lambda _: size):
            batch = collate_ranked(ranked[first : first + size])
            yield first, {k: to_device(part, self.config.device, self.config.dtype) for k, part in batch.items()}

    def export(self, folder: Path) -> None:
        """Write the model, whose demonstrations then have a mean score of 0, and its tokenizer."""
        before = self.model.bias.clone()
        try:  # the weights in training stay as they are, so that it resumes exactly
            self.model.bias.copy_(self._mean_of_demonstrations())
            super().export(folder)
            self.objective.export(folder)
        finally:
            self.model.bias.copy_(before)

    @torch.no_grad()
    def _mean_of_demonstrations(self) -> Float[Tensor, ""]:
        demonstrations, total = self.data.demonstrations, torch.zeros((), dtype=torch.float64)
        with evaluation_mode(self.model):
            for first in range(0, len(demonstrations), self.config.batch_size):
                rows = Sequences.of(demonstrations[first : first + self.config.batch_size]).to(self.config.device)
                total += self.model.whole(rows.tokens, rows.valid).double().sum().cpu()
        return total / len(demonstrations)


def _unscaled(loss: Spec) -> Spec:
    """Return a preference loss whose β is 1 unless it is given: scores are rewards already."""
    return Spec.of({"type": loss.type, "beta": 1.0, **loss.options})
