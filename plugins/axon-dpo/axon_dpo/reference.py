"""What trainers share that compare a policy with a frozen reference, whose log-probabilities are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axon_core import CheckpointError, Key, TrainingError, assembled, at, validate
from axon_core.alignment import Sequences, completion_logprobs, require_role
from axon_core.generation import sample_text
from axon_core.interfaces import CausalLM
from axon_core.text import Order, RowsConfig, Tokenizer
from axon_core.training import Recipe, Trainer, load_pretrained, run_evaluation, track_own
from axon_dpo.start import Start, load_reference

__all__ = ["ReferenceTrainer", "TwoEach", "pair_logprobs"]


class TwoEach(Protocol):
    """Examples, each a prompt with two texts."""

    def rows(self, picks: list[int]) -> dict[str, Int[Tensor, "b 2 n"]]:
        """Return `tokens`, `valid` and `scored` of some examples, and perhaps more columns."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...


class ReferenceTrainer(Trainer):
    """Compares the role `policy`, any `CausalLM`, with a reference: the policy at the start, or the role `reference`.

    The reference's log-probabilities of both texts of each example are computed once, before the first step, and are
    part of every checkpoint, so no reference stays in memory. Dropout is off, so that at the start the policy is the
    reference.
    """

    class Config(Trainer.Config):
        """Settings of such a training, in addition to those of every trainer."""

        reference_free: bool = False
        """Whether π_ref is left out, as if it found all texts equally likely."""

    config: Config
    data_config: ClassVar[type[RowsConfig]]
    """The class of the recipe's table `data`."""
    trainable = ("policy",)
    training_mode = False  # the policy is compared with a reference that has no dropout

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: Any, key: str) -> None:
        super().__init__(config, models)
        self.models: dict[str, nn.Module] = dict(models)  # a copy: the reference is removed once it is no longer needed
        self.policy = require_role(models, "policy", CausalLM, key)
        self.data, self._key = data, key
        self._order = Order(len(data.train), Key((config.seed, "order")))
        self._reference: dict[str, Tensor] = {}
        if config.reference_free:
            sizes = {"train": len(data.train), "held_out": len(data.held_out)}
            like = {"dtype": config.dtype or torch.float32, "device": config.device}
            self._reference = {part: torch.zeros(n, 2, **like) for part, n in sizes.items()}

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Also check the tables `model` and `data`; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("model"):
            validate(Start, recipe.model)
        with at("data"):
            validate(cls.data_config, recipe.data).check_template()

    @classmethod
    def load_models(cls, recipe: Recipe, config: Config, saved: Path | None) -> tuple[dict[str, nn.Module], Tokenizer]:
        """Return the models of a recipe's table `model` (`Start`), by role, and their tokenizer.

        Raises:
            ConfigError: the table breaks a rule, or the reference has other tokens.
            CheckpointError: a saved model cannot be read.
        """
        with at("model"):
            start = validate(Start, recipe.model)
            policy, tokenizer = load_pretrained(saved or start.folder, CausalLM)
            models: dict[str, nn.Module] = {"policy": policy}
            # A resumed run has the reference's log-probabilities in its checkpoint.
            if not saved and not config.reference_free and (other := load_reference(start, policy, tokenizer)):
                models["reference"] = other
        return models, tokenizer

    @staticmethod
    def shared_context(models: Mapping[str, nn.Module]) -> int:
        """Return the most tokens that all of the models take."""
        return min(model.context for model in models.values() if isinstance(model, CausalLM))

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return a step's examples: `tokens`, `valid`, `scored` `(b 2 n)`, and their numbers."""
        picks = self._order.batch(step, self.config.batch_size)
        return {**self.data.train.rows(picks.tolist()), "number": picks}

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        """Add the reference's log-probabilities `(b 2)`, which the first step computes for all examples.

        Raises:
            TrainingError: the reference gives a text zero probability.
        """
        return self._with_reference(batch, "train")

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

    def _with_reference(self, batch: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        self._measure_reference()
        return {**batch, "reference": self._reference[part][batch["number"]]}

    def _measure_reference(self) -> None:
        """Compute the reference's log-probabilities of all examples, unless that has been done."""
        if not self._reference:
            parts = {"train": self.data.train, "held_out": self.data.held_out}
            self._reference = run_evaluation(
                self, lambda: {name: self._measured(pairs) for name, pairs in parts.items()}
            )
            self.models.pop("reference", None)

    def _measured(self, pairs: TwoEach) -> Float[Tensor, "n 2"]:
        """Return the reference's log-probabilities of all examples, a few at a time, each by one process."""
        model = require_role({"reference": self.policy, **self.models}, "reference", CausalLM, self._key)
        logps: Float[Tensor, "n 2"] | None = None
        for picks in track_own(torch.arange(len(pairs)).split(self._rows), len(pairs), len, "reference"):
            rows = {name: rows.to(self.config.device) for name, rows in pairs.rows(picks.tolist()).items()}
            found = pair_logprobs(model, rows).cpu()
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
        """How many examples are in memory at once."""
        return -(-self.config.batch_size // self.config.micro_batches)


def pair_logprobs(model: CausalLM, rows: Mapping[str, Tensor]) -> Float[Tensor, "b 2"]:
    """Return the summed log-probabilities of both texts of each example, from one forward pass."""
    sequences = Sequences(*(rows[name].flatten(0, 1) for name in ("tokens", "valid", "scored")))
    return completion_logprobs(model, sequences).view(-1, 2)
