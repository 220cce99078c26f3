"""Trainer `sft`: supervised fine-tuning of a causal language model on demonstrations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import Key, at, sum_numbers, validate
from axon_core.alignment import require_role, token_logprobs
from axon_core.generation import sample_text
from axon_core.interfaces import CausalLM
from axon_core.text import Order, read_demonstrations
from axon_core.training import InitialModel, Recipe, Trainer, coverage, evenly_spaced, track_own
from axon_instructgpt.demonstrations import DemonstrationConfig, Demonstrations, Example
from axon_instructgpt.packing import collate, pack
from axon_instructgpt.start import begin

__all__ = ["SFTTrainer"]

_EXAMPLE = Path(__file__).with_name("example")


class SFTTrainer(Trainer):
    """Minimise the mean of −log p(token | tokens before it) over the tokens of completions, or of assistants' turns.

    Works with any registered `CausalLM`, under the role `model` (arXiv 2203.02155, Section 3.5; no loss on prompts, as
    in arXiv 2307.09288, Section 3.1). Examples are packed: a row of a batch holds as many as fit into the model's
    context, each a document of its own that starts at position 0 and sees no other, so `batch_size` counts rows. Every
    learned token counts the same, whatever row it is in.
    """

    class Config(Trainer.Config):
        """Settings of fine-tuning, in addition to those of every trainer."""

        eval_examples: PositiveInt = 5_000
        """The most held-out examples that an evaluation reads; if there are more, they are evenly spaced."""

    config: Config
    unit = "tokens"
    trainable = ("model",)
    examples = tuple(
        {
            "model": {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": context},
            "trainer": {"type": "sft", "batch_size": 2},
            "data": {"path": str(_EXAMPLE / name), "held_out": 0.25},
        }
        for name, context in (("completions.jsonl", 28), ("dialogues.jsonl", 64))
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: Demonstrations) -> None:
        super().__init__(config, models)
        self.model = require_role(models, "model", CausalLM, "sft")
        self.data = data
        self._rows = _packed(data.train, self.model.context)
        self._order = Order(len(self._rows), Key((config.seed, "order")))

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        """Check the tables `model` and `data` too; see `Trainer.check_recipe`."""
        super().check_recipe(recipe)
        with at("model"):
            InitialModel.check(recipe.model)
        with at("data"):
            validate(DemonstrationConfig, recipe.data).check_template()

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build it from a recipe's tables `model`, `data` and `trainer`; see `Trainer.from_recipe`.

        `model` holds a new model's `type` and options, or `init`, the folder of a saved one.
        """
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("data"):
            settings = validate(DemonstrationConfig, recipe.data)
            records = read_demonstrations(settings.path, settings)
        text = "".join(text for record in records for text in record.texts())
        model, tokenizer = begin(recipe, saved, config.seed, settings.tokenizer, text)
        context = require_role({"model": model}, "model", CausalLM, "sft").context
        with at("data"):
            data = Demonstrations.of(records, tokenizer, context, settings)
        return cls(config, {"model": model}, data)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the rows of a step: `tokens`, `scored` and `documents` `(b n)`."""
        return collate([self._rows[i] for i in self._order.batch(step, self.config.batch_size).tolist()])

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the number of tokens that are learned."""
        return dict.fromkeys(("loss", "accuracy"), data["scored"].sum())

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy, in nats, and how many tokens are the model's first choice."""
        scored, documents = data["scored"][:, 1:], data["documents"]
        features = self.model.features(data["tokens"], valid=documents > 0, documents=documents)
        logits = self.model.logits(features[:, :-1][scored][None])[0]
        targets = data["tokens"][:, 1:][scored]
        right = (logits.argmax(-1) == targets).sum()
        loss = -token_logprobs(logits, targets).sum()
        return {"loss": loss, "accuracy": right.to(loss.dtype)}

    def evaluate(self) -> dict[str, float]:
        """Return `loss` in nats per token, its `perplexity`, `accuracy`, and `tokens`, over the held-out examples.

        At most `eval_examples` are read. If those are not all, `examples` says how many were read, and
        `held_out_examples` how many there are.
        """
        held_out = self.data.held_out
        examples = [held_out[i] for i in evenly_spaced(len(held_out), self.config.eval_examples)]
        rows, totals = _packed(examples, self.model.context), {"loss": 0.0, "accuracy": 0.0, "tokens": 0.0}
        firsts = range(0, len(rows), self.config.batch_size)
        for first in track_own(firsts, len(rows), lambda _: self.config.batch_size):
            batch = collate(rows[first : first + self.config.batch_size])
            data = {name: part.to(self.config.device) for name, part in batch.items()}
            totals["tokens"] += float(self.counts(data)["loss"])
            for name, total in self.loss(data).items():
                totals[name] += total.double().item()
        totals = sum_numbers(totals)
        tokens = totals["tokens"]
        loss = totals["loss"] / tokens
        perplexity = math.exp(min(loss, 700.0))  # as far as a float can hold it
        found = {"loss": loss, "perplexity": perplexity, "accuracy": totals["accuracy"] / tokens, "tokens": tokens}
        return {**found, **coverage("examples", len(examples), len(held_out))}

    def sample(self) -> str:
        """Return a held-out prompt, and how the model continues it."""
        tokens, scored = self.data.held_out[0]
        prompt, tokenizer = tokens[: scored.index(True)], self.data.tokenizer
        return sample_text(self.model, tokenizer, prompt)


def _packed(examples: Sequence[Example], context: int) -> list[list[Example]]:
    rows = pack([len(example.tokens) for example in examples], context)
    return [[examples[i] for i in row] for row in rows]
