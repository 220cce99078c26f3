"""Trainer `causal_lm`: next-token prediction on a text, or on token shards larger than memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import ConfigError, DataError, Key, at, validate
from axon_core.alignment import require_role, token_logprobs
from axon_core.generation import sample_text
from axon_core.interfaces import CausalLM
from axon_core.text import LanguageData, SourcePlan, load_language_data
from axon_core.training import InitialModel, Recipe, TextEvaluation, Trainer, coverage, held_out_likelihood


class CausalLMTrainer(Trainer):
    """Minimise the mean of −log p(token | tokens before it) over windows of the text, in nats per token.

    Works with any registered `CausalLM`, under the role `model`: a new one, or a saved one if the recipe's table
    `[model]` is a `Saved`. The loss is next-token cross-entropy as in arXiv 2302.13971, Section 2; evaluation covers
    the held-out part, in windows as long as those of training.

    Raises:
        ConfigError: the windows are longer than the model's context.
    """

    class Config(Trainer.Config):
        """Settings of causal language modelling, in addition to those of every trainer."""

        context: PositiveInt | None = None
        """Tokens of a window that is trained on and evaluated; by default the model's context, which it cannot exceed.
        """
        prompt: str | None = None
        """What the text shown after training continues; left out, the beginning of the held-out part."""
        eval_tokens: PositiveInt = 250_000
        """About how many held-out tokens an evaluation reads, the last one too: of a longer held-out part, windows
        spread evenly over it. `tokens`, beside the loss, says how many were read."""

    Evaluation = TextEvaluation
    config: Config
    unit = "tokens"
    trainable = ("model",)
    examples = (
        {
            "model": {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 8},
            "trainer": {"type": "causal_lm", "batch_size": 4},
            "data": {"held_out": 0.001},
        },
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: LanguageData) -> None:
        super().__init__(config, models)
        self.model = require_role(models, "model", CausalLM, "causal_lm")
        self.data = data
        self.context = config.context or self.model.config.context
        if self.context > self.model.context:
            rule = f"must be at most the model's context of {self.model.context}, got {self.context}"
            raise ConfigError([(("trainer", "context"), rule)])
        self._examples = data.examples(self.context, Key((config.seed, "windows")))

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe's tables `model`, `data` and `trainer`; see `Trainer.from_recipe`.

        Raises:
            ConfigError: a table breaks a rule, or the tokenizer cannot encode the prompt.
            DataError: the data cannot be used.
        """
        with at("trainer"):
            settings = validate(cls.Config, recipe.trainer.options)
        with at("model"):
            initial = InitialModel(recipe.model, saved)
        with at("data"):
            data = load_language_data(recipe.data, initial.saved_tokenizer())
        if settings.prompt is not None:
            try:  # before training, not after it
                data.tokenizer.encode_prompt(settings.prompt)
            except DataError as error:
                raise ConfigError([(("trainer", "prompt"), f"{error}; or choose another prompt")]) from error
        with at("model"):
            model = initial.build(CausalLM, settings.seed, data.tokenizer)
        return cls(settings, {"model": model}, data)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the windows of a step: `tokens` `(b n+1)`, and `documents` `(b n)` if these are masked."""
        return self._examples.batch(step, self.config.batch_size)

    def sources(self) -> Sequence[SourcePlan]:
        """Return the sources of the data, and how often the training goes through each."""
        return self._examples.sources(self.config.steps * self.config.batch_size)

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        """Return the number of predicted tokens."""
        return {"loss": data["tokens"][:, 1:].numel()}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy, in nats."""
        tokens = data["tokens"]
        logits = self.models["model"](tokens[:, :-1], documents=data.get("documents"))
        return {"loss": -token_logprobs(logits, tokens[:, 1:]).sum()}

    def evaluate(self) -> dict[str, float]:
        """Return `loss` in nats per token and `bits_per_byte` of the held-out part, and how many `tokens` were read.

        If that is not the whole part, `held_out_tokens` says how many it has.
        """
        found = held_out_likelihood(self.model, self.data, self.config.eval_tokens, self.context)
        return {**found, **coverage("tokens", found["tokens"], self.data.held_out_targets)}

    def sample(self) -> str:
        """Return a text: the prompt, and how the model continues it."""
        tokenizer, asked = self.data.tokenizer, self.config.prompt
        beginning = self.data.beginning(min(16, self.model.context))
        prompt = tokenizer.encode_prompt(asked) if asked else beginning
        return sample_text(self.model, tokenizer, prompt)
