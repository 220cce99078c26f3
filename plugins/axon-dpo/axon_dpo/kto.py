"""Trainer `kto`: a causal language model learns from single answers, each of which was found desirable or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from axon_core import Key, at, sum_numbers, validate
from axon_core.alignment import Sequences, completion_logprobs
from axon_core.training import Recipe, coverage, evenly_spaced, track_own
from axon_dpo.feedback import FeedbackConfig, FeedbackData
from axon_dpo.losses import prospect, reference_point
from axon_dpo.reference import ReferenceTrainer

__all__ = ["KTOTrainer"]

_EXAMPLE = Path(__file__).with_name("example")
_KINDS, _WHICH = ("rewards", "logps"), ("chosen", "rejected")
_NAMES = ("loss", "kl", *(f"{kind}/{which}" for kind in _KINDS for which in _WHICH))


class KTOTrainer(ReferenceTrainer):
    """Minimise `prospect` of how much likelier than its reference the policy finds each answer.

    No comparisons are needed: an answer to a prompt is desirable or not (arXiv 2402.01306, Eq. 7 by TRL's count). z_0,
    from which gains and losses are counted, is estimated before each update from the step's prompts, each with the
    answer to the next prompt of the data; micro-batches do not change it. For the reference see `ReferenceTrainer`.

    Metrics: `kl` is z_0; `rewards/…` and `logps/…` are means over the answers, `chosen` over the desirable ones and
    `rejected` over the others, of β log π/π_ref and of the summed log-probabilities in nats.
    """

    class Config(ReferenceTrainer.Config):
        """Settings of learning from feedback, in addition to those of every trainer."""

        beta: PositiveFloat = 0.1
        """How soon gains and losses saturate, and so how costly it is to move away from the reference."""
        desirable_weight: NonNegativeFloat = 1.0
        """Weight λ_D of desirable answers; with λ_U it can make up for unequal numbers of the two."""
        undesirable_weight: NonNegativeFloat = 1.0
        """Weight λ_U of undesirable answers."""
        eval_answers: PositiveInt = 5_000
        """The most held-out answers that an evaluation reads; if there are more, they are evenly spaced."""

    config: Config
    data_config = FeedbackConfig
    unit = "answers"
    examples = tuple(
        {
            "model": {"init": str(_EXAMPLE)},
            "trainer": {"type": "kto", "batch_size": 4, **options},
            "data": {"path": str(_EXAMPLE / "feedback.jsonl"), "held_out": 0.25},
        }
        for options in ({}, {"desirable_weight": 1.5, "reference_free": True})
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: FeedbackData) -> None:
        super().__init__(config, models, data, "kto")

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build it from a recipe's tables `model` (`Start`), `data` and `trainer`; see `Trainer.from_recipe`."""
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        models, tokenizer = cls.load_models(recipe, config, saved)
        with at("data"):
            settings = validate(FeedbackConfig, recipe.data)
            data = FeedbackData.load(settings, tokenizer, cls.shared_context(models))
        return cls(config, models, data)

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Add the reference's log-probabilities `(b 2)`, and z_0 of the whole step as `point` `(b)`.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        data = super().collect(batch, key)
        ratios = torch.cat([self._ratios(rows, 1) for rows in _pieces(data, self._rows)])
        found = sum_numbers({"total": ratios.double().sum().item(), "count": float(len(ratios))})
        return {**data, "point": torch.full_like(ratios, reference_point(found["total"], found["count"]))}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float | Tensor]:
        """Return the number of answers, and those of desirable and other ones."""
        size, chosen = len(data["tokens"]), data["desirable"].sum()
        both = {
            f"{kind}/{which}": n for kind in _KINDS for which, n in (("chosen", chosen), ("rejected", size - chosen))
        }
        return {"loss": size, "kl": size, **both}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the loss and the metrics, summed over the answers."""
        return self._terms(self._logps(data, 0), data["reference"][:, 0], data["desirable"], data["point"])

    def evaluate(self) -> dict[str, float]:
        """Return means of the loss and the metrics over the held-out answers, at most `eval_answers` of them.

        z_0 is that of all of them together. If those are not all, `answers` says how many were read, and
        `held_out_answers` how many there are.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        judged = self.data.held_out
        self._measure_reference()
        chosen = torch.tensor(evenly_spaced(len(judged), self.config.eval_answers))
        found, other = list[tuple[Tensor, Tensor, Tensor]](), {"total": 0.0, "count": 0.0}
        for picks in track_own(chosen.split(self._rows), len(chosen), len):
            batch = {**judged.rows(picks.tolist()), "number": picks}
            data = self._with_reference({name: rows.to(self.config.device) for name, rows in batch.items()}, "held_out")
            other["total"] += self._ratios(data, 1).double().sum().item()
            other["count"] += len(picks)
            found.append((self._logps(data, 0), data["reference"][:, 0], data["desirable"]))
        point = reference_point(**sum_numbers(other))
        totals = dict.fromkeys((*_NAMES, *_WHICH), 0.0)
        for logps, reference, desirable in found:
            terms = self._terms(logps, reference, desirable, torch.full_like(logps, point))
            for name, total in {**terms, "chosen": desirable.sum(), "rejected": (~desirable).sum()}.items():
                totals[name] += total.double().item()
        totals = sum_numbers(totals)
        sizes = {name: totals[name.partition("/")[2]] if "/" in name else float(len(chosen)) for name in _NAMES}
        means = {name: totals[name] / size for name, size in sizes.items() if size}
        return {**means, **coverage("answers", len(chosen), len(judged))}

    def _terms(
        self, logps: Float[Tensor, " b"], reference: Float[Tensor, " b"], desirable: Tensor, point: Float[Tensor, " b"]
    ) -> dict[str, Tensor]:
        """Return the loss and the metrics, summed."""
        c, ratios = self.config, logps - reference
        values = prospect(ratios, desirable, point, c.beta, c.desirable_weight, c.undesirable_weight)
        shown = {"rewards": c.beta * ratios.detach(), "logps": logps.detach()}
        both = {
            f"{kind}/{which}": shown[kind][mask].sum()
            for kind in _KINDS
            for which, mask in zip(_WHICH, (desirable, ~desirable), strict=True)
        }
        return {"loss": values.sum(), "kl": point.sum(), **both}

    def _ratios(self, data: Mapping[str, Tensor], which: int) -> Float[Tensor, " b"]:
        """Return log π/π_ref of the answers (0), or of those to other prompts (1)."""
        return self._logps(data, which) - data["reference"][:, which]

    def _logps(self, data: Mapping[str, Tensor], which: int) -> Float[Tensor, " b"]:
        rows = Sequences(*(data[name][:, which] for name in ("tokens", "valid", "scored")))
        return completion_logprobs(self.policy, rows)


def _pieces(data: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Return examples in pieces of `size`."""
    n = len(data["tokens"])
    return [{name: rows[first : first + size] for name, rows in data.items()} for first in range(0, n, size)]
