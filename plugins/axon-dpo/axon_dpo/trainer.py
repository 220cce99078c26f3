"""Trainer `dpo`: direct preference optimisation of a causal language model."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from axon_core import assembled, at, sum_numbers, validate
from axon_core.registry import Spec
from axon_core.training import Recipe, coverage, evenly_spaced, run_evaluation, track_own
from axon_dpo.data import PreferenceConfig, PreferenceData
from axon_dpo.losses import PREFERENCE_LOSSES
from axon_dpo.reference import ReferenceTrainer, pair_logprobs

__all__ = ["DPOTrainer"]

_EXAMPLE = Path(__file__).with_name("example")
_NAMES: tuple[str, ...] = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class DPOTrainer(ReferenceTrainer):
    """Minimise a preference loss, such as −log σ(βΔ), of how far the policy has moved from its reference.

    Δ = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x), for a prompt x, the chosen text y_w and the rejected one
    y_l (arXiv 2305.18290, Section 4, Eq. 7). For the reference see `ReferenceTrainer`. Metrics are means over
    comparisons: `rewards/…` are the implicit rewards β log π/π_ref, `logps/…` the summed log-probabilities in nats.
    """

    class Config(ReferenceTrainer.Config):
        """Settings of preference optimisation, in addition to those of every trainer."""

        loss: Spec = Field(default_factory=lambda: Spec(type="sigmoid"), validate_default=True)
        """The preference loss by `type`, `sigmoid`, `conservative`, `robust`, `ipo` or `hinge`, with its `beta`."""
        eval_comparisons: PositiveInt = 5_000
        """The most held-out comparisons that an evaluation reads; if there are more, they are evenly spaced."""

    config: Config
    data_config = PreferenceConfig
    unit = "comparisons"
    examples = tuple(
        {
            "model": {"init": str(_EXAMPLE)},
            "trainer": {"type": "dpo", "batch_size": 4, **options},
            "data": {"path": str(_EXAMPLE / "comparisons.jsonl"), "held_out": 0.25},
        }
        for options in ({}, {"loss": {"type": "ipo", "length_normalised": True}}, {"reference_free": True})
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: PreferenceData) -> None:
        super().__init__(config, models, data, "dpo")
        with at("trainer", "loss"):
            self.objective = PREFERENCE_LOSSES.build(config.loss)
            self.objective.introduce(data.raters, data.train.judgements(), data.held_out.judgements())

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Also check the loss, and the tables `model` and `data`; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("trainer", "loss"):
            PREFERENCE_LOSSES.config(validate(cls.Config, recipe.trainer.options).loss)

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build it from a recipe's tables `model` (`Start`), `data` and `trainer`; see `Trainer.from_recipe`."""
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        models, tokenizer = cls.load_models(recipe, config, saved)
        with at("data"):
            settings = validate(PreferenceConfig, recipe.data)
            data = PreferenceData.load(settings, tokenizer, cls.shared_context(models))
        return cls(config, models, data)

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the number of comparisons."""
        return dict.fromkeys(_NAMES, len(data["tokens"]))

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the loss and the metrics, summed over the comparisons."""
        return {name: values.sum() for name, values in self._terms(data).items()}

    def evaluate(self) -> dict[str, float]:
        """Return means of the loss and the metrics over the held-out comparisons, at most `eval_comparisons` of them.

        If those are not all, `comparisons` says how many were read, and `held_out_comparisons` how many there are.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        chosen, totals = self._evaluated(), dict.fromkeys(_NAMES, 0.0)
        for _, data in self._held_out(chosen):
            for name, values in self._terms(data).items():
                totals[name] += values.double().sum().item()
        means = {name: total / len(chosen) for name, total in sum_numbers(totals).items()}
        return {**means, **coverage("comparisons", len(chosen), len(self.data.held_out))}

    def before_step(self, step: int) -> None:
        """Let the loss learn about the raters from held-out comparisons, at most `eval_comparisons` of them.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        self.objective.learn(step, lambda: run_evaluation(self, self._compare))

    def state_dict(self) -> dict[str, Any]:
        """Return what `ReferenceTrainer` keeps, and what the loss has learnt."""
        learnt = self.objective.state_dict()
        return {**super().state_dict(), **({"loss": learnt} if learnt else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `CheckpointError` if it belongs to another run."""
        super().load_state_dict(state)
        self.objective.load_state_dict(state.get("loss", {}))

    def export(self, folder: Path) -> None:
        """Write the policy, its tokenizer, and what the loss has learnt; see `Trainer.export`."""
        super().export(folder)
        self.objective.export(folder)

    def _compare(self) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Return Δ and the rater of held-out comparisons."""
        chosen, found = self._evaluated(), torch.zeros(len(self.data.held_out), dtype=torch.float64)
        raters = torch.tensor([self.data.held_out[i].rater or 0 for i in chosen.tolist()])
        for picks, data in self._held_out(chosen):
            better, worse = (pair_logprobs(self.policy, data) - data["reference"]).double().cpu().unbind(1)
            found[picks] = better - worse
        return assembled(found)[chosen], raters

    def _evaluated(self) -> Int[Tensor, " n"]:
        """Return the numbers of the held-out comparisons that an evaluation reads."""
        return torch.tensor(evenly_spaced(len(self.data.held_out), self.config.eval_comparisons))

    def _held_out(self, chosen: Int[Tensor, " n"]) -> Generator[tuple[Int[Tensor, " b"], dict[str, Tensor]]]:
        """Yield numbers of held-out comparisons, and these as data; of several processes to each its own part."""
        self._measure_reference()
        for picks in track_own(chosen.split(self._rows), len(chosen), len):
            batch = {**self.data.held_out.rows(picks.tolist()), "number": picks}
            rows = {name: rows.to(self.config.device) for name, rows in batch.items()}
            yield picks, self._with_reference(rows, "held_out")

    def _terms(self, data: dict[str, Tensor]) -> dict[str, Float[Tensor, " b"]]:
        """Return the loss and the metrics of each comparison."""
        logps = pair_logprobs(self.policy, data)
        ratios = logps - data["reference"]
        chosen, rejected = (self.objective.config.beta * ratios.detach()).unbind(1)
        values = (
            self.objective.by(data.get("rater"))(ratios, data["scored"].sum(2)),
            chosen,
            rejected,
            (chosen > rejected).to(chosen.dtype),
            chosen - rejected,
            *logps.detach().unbind(1),
        )
        return dict(zip(_NAMES, values, strict=True))
