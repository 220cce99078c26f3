"""Trainer `dpo`: direct preference optimisation of a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from axon_core import CheckpointError, Key, TrainingError, assembled, at, sum_numbers, validate
from axon_core.alignment import Sequences, completion_logprobs, require_role
from axon_core.generation import sample_text
from axon_core.interfaces import CausalLM
from axon_core.registry import Spec
from axon_core.text import Order
from axon_core.training import Recipe, Trainer, coverage, evenly_spaced, load_pretrained, run_evaluation, track_own
from axon_dpo.data import Pairs, PreferenceConfig, PreferenceData
from axon_dpo.losses import PREFERENCE_LOSSES
from axon_dpo.start import Start, load_reference

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


class DPOTrainer(Trainer):
    """Minimise a preference loss, such as −log σ(βΔ), of how far the policy has moved from its reference.

    Δ = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x), for a prompt x, the chosen text y_w and the rejected one
    y_l (arXiv 2305.18290, Section 4, Eq. 7). Works with any `CausalLM`, under the role `policy`. The reference is the
    policy as it is at the start, or a separate model under the role `reference`. Its log-probabilities are computed
    once, before the first step, and are part of every checkpoint, so no reference stays in memory.

    Dropout is off, so that at the start the policy is the reference. Metrics are means over comparisons: `rewards/…`
    are the implicit rewards β log π/π_ref, `logps/…` the summed log-probabilities in nats.
    """

    class Config(Trainer.Config):
        """Settings of preference optimisation, in addition to those of every trainer."""

        loss: Spec = Field(default_factory=lambda: Spec(type="sigmoid"), validate_default=True)
        """The preference loss by `type`, `sigmoid`, `conservative`, `robust`, `ipo` or `hinge`, with its `beta`."""
        reference_free: bool = False
        """Whether π_ref is left out, as if it found all texts equally likely."""
        eval_comparisons: PositiveInt = 5_000
        """The most held-out comparisons that an evaluation reads; if there are more, they are evenly spaced."""

    config: Config
    unit = "comparisons"
    trainable = ("policy",)
    training_mode = False  # the policy is compared with a reference that has no dropout
    examples = tuple(
        {
            "model": {"init": str(_EXAMPLE)},
            "trainer": {"type": "dpo", "batch_size": 4, **options},
            "data": {"path": str(_EXAMPLE / "comparisons.jsonl"), "held_out": 0.25},
        }
        for options in ({}, {"loss": {"type": "ipo", "length_normalised": True}}, {"reference_free": True})
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: PreferenceData) -> None:
        super().__init__(config, models)
        self.models: dict[str, nn.Module] = dict(models)  # a copy: the reference is removed once it is no longer needed
        self.policy = require_role(models, "policy", CausalLM, "dpo")
        self.data = data
        with at("trainer", "loss"):
            self.objective = PREFERENCE_LOSSES.build(config.loss)
        self._order = Order(len(data.train), Key((config.seed, "order")))
        self._reference: dict[str, Tensor] = {}
        if config.reference_free:
            sizes = {"train": len(data.train), "held_out": len(data.held_out)}
            like = {"dtype": config.dtype or torch.float32, "device": config.device}
            self._reference = {part: torch.zeros(n, 2, **like) for part, n in sizes.items()}

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Also check the loss, and the tables `model` and `data`; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("trainer", "loss"):
            PREFERENCE_LOSSES.config(validate(cls.Config, recipe.trainer.options).loss)
        with at("model"):
            validate(Start, recipe.model)
        with at("data"):
            validate(PreferenceConfig, recipe.data).check_template()

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build it from a recipe's tables `model` (`Start`), `data` and `trainer`; see `Trainer.from_recipe`."""
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("model"):
            start = validate(Start, recipe.model)
            policy, tokenizer = load_pretrained(saved or start.folder, CausalLM)
            models: dict[str, nn.Module] = {"policy": policy}
            context = policy.context
            # A resumed run has the reference's log-probabilities in its checkpoint.
            if not saved and not config.reference_free and (other := load_reference(start, policy, tokenizer)):
                models["reference"], context = other, min(context, other.context)
        with at("data"):
            data = PreferenceData.load(validate(PreferenceConfig, recipe.data), tokenizer, context)
        return cls(config, models, data)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return a step's comparisons: `tokens`, `valid`, `scored` `(b 2 n)`, and their numbers."""
        picks = self._order.batch(step, self.config.batch_size)
        return {**self.data.train.rows(picks.tolist()), "number": picks}

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Add the reference's log-probabilities `(b 2)`, which the first step computes for all comparisons.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        return self._with_reference(batch, "train")

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
        pairs, totals = self.data.held_out, dict.fromkeys(_NAMES, 0.0)
        self._measure_reference()
        chosen = torch.tensor(evenly_spaced(len(pairs), self.config.eval_comparisons))
        for picks in track_own(chosen.split(self._rows), len(chosen), len):
            batch = {**pairs.rows(picks.tolist()), "number": picks}
            data = self._with_reference({name: rows.to(self.config.device) for name, rows in batch.items()}, "held_out")
            for name, values in self._terms(data).items():
                totals[name] += values.double().sum().item()
        means = {name: total / len(chosen) for name, total in sum_numbers(totals).items()}
        return {**means, **coverage("comparisons", len(chosen), len(pairs))}

    def sample(self) -> str:
        """Return a held-out prompt, and how the policy continues it."""
        prompt, tokenizer = self.data.held_out[0].prompt, self.data.tokenizer
        return sample_text(self.policy, tokenizer, prompt)

    def state_dict(self) -> dict[str, Any]:
        """Return the reference's log-probabilities, as far as they are known, and whether there is a reference."""
        return {
            "reference": dict(self._reference),
            "reference_free": self.config.reference_free,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: it belongs to a run with a reference, and this one has none.
        """
        if (before := state["reference_free"]) != self.config.reference_free:
            raise CheckpointError(
                f"trainer.reference_free must stay {before} during a run; restore it, or start a new run"
            )
        self._reference = {part: logps.to(self.config.device) for part, logps in state["reference"].items()}

    def _terms(self, data: dict[str, Tensor]) -> dict[str, Float[Tensor, " b"]]:
        """Return the loss and the metrics of each comparison."""
        logps = _logprobs(self.policy, data)
        ratios = logps - data["reference"]
        chosen, rejected = (self.objective.config.beta * ratios.detach()).unbind(1)
        values = (
            self.objective(ratios, data["scored"].sum(2)),
            chosen,
            rejected,
            (chosen > rejected).to(chosen.dtype),
            chosen - rejected,
            *logps.detach().unbind(1),
        )
        return dict(zip(_NAMES, values, strict=True))

    def _with_reference(self, batch: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        self._measure_reference()
        return {**batch, "reference": self._reference[part][batch["number"]]}

    def _measure_reference(self) -> None:
        """Compute the reference's log-probabilities of all comparisons, unless that has been done."""
        if not self._reference:
            parts = {"train": self.data.train, "held_out": self.data.held_out}
            self._reference = run_evaluation(
                self, lambda: {name: self._measured(pairs) for name, pairs in parts.items()}
            )
            self.models.pop("reference", None)

    def _measured(self, pairs: Pairs) -> Float[Tensor, "n 2"]:
        """Return the reference's log-probabilities of all comparisons, a few at a time, each by one process."""
        model = require_role({"reference": self.policy, **self.models}, "reference", CausalLM, "dpo")
        logps: Float[Tensor, "n 2"] | None = None
        for picks in track_own(torch.arange(len(pairs)).split(self._rows), len(pairs), len, "reference"):
            rows = {name: rows.to(self.config.device) for name, rows in pairs.rows(picks.tolist()).items()}
            found = _logprobs(model, rows).cpu()
            logps = found.new_zeros(len(pairs), 2) if logps is None else logps
            logps[picks] = found
        dtype = next(model.parameters()).dtype
        logps = assembled(torch.zeros(len(pairs), 2, dtype=dtype) if logps is None else logps).to(self.config.device)
        for i in (~logps.isfinite().all(1)).nonzero()[:1].flatten().tolist():
            raise TrainingError(
                f"{pairs[i].name}: the reference must give both texts a probability, got log-probabilities "
                f"{logps[i].tolist()}; is the model intact?"
            )
        return logps

    @property
    def _rows(self) -> int:
        """How many comparisons are in memory at once."""
        return -(-self.config.batch_size // self.config.micro_batches)


def _logprobs(model: CausalLM, rows: Mapping[str, Tensor]) -> Float[Tensor, "b 2"]:
    """Return the summed log-probabilities of chosen and rejected texts, from one forward pass."""
    sequences = Sequences(*(rows[name].flatten(0, 1) for name in ("tokens", "valid", "scored")))
    return completion_logprobs(model, sequences).view(-1, 2)
