"""Trainer `translation`: a Transformer on pairs of sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from axon_core import ContractError, Count, Key, at, config, own, restored, sum_numbers, validate
from axon_core.checkpoint import digest
from axon_core.text import PAD, Tokenizer
from axon_core.training import Recipe, Trainer, coverage, evenly_spaced, new_model, report_progress, track_own
from axon_transformer.averaging import latest_models
from axon_transformer.batches import TokenBatches
from axon_transformer.bleu import Tokenize, bleu, tokenizer_of
from axon_transformer.corpus import check_aligned, read_lines
from axon_transformer.data import Encoded, ParallelConfig, ParallelData, valid_tokens
from axon_transformer.loss import linear_cross_entropy
from axon_transformer.model import Transformer
from axon_transformer.search import Alpha, Beam, Search
from axon_transformer.translate import Translator

_ROWS = 128  # sentences of an evaluation that run at once


class TranslationTrainer(Trainer):
    """Minimise the label-smoothed cross-entropy of the target's tokens, in nats per token.

    The metric `nll` is the cross-entropy without smoothing, and so is the `loss` of evaluation: the mean over all
    tokens of the validation set, end markers included, of which `perplexity` is the exponential. `bleu` is sacrebleu's,
    of the validation set translated as `search` says. Source: arXiv 1706.03762, Section 5.

    Raises:
        ContractError: the model is not a Transformer.
    """

    class Config(Trainer.Config):
        """Settings of translation, in addition to those of every trainer."""

        batch_size: PositiveInt = 4096
        """Target tokens in a step, or somewhat more (Section 5.1: 25,000)."""
        label_smoothing: float = Field(default=0.1, ge=0, lt=1)
        """ε, the probability that the target distribution spreads over the whole vocabulary (Section 5.4)."""
        search: Search = Search(beam=1)
        """How the validation set is translated for BLEU; by default greedily, which is fastest."""
        tokenize: Tokenize | None = None
        """sacrebleu's tokenizer for BLEU: `13a`, `zh`, `char`, …; left out, it is chosen by the references' script."""
        eval_sentences: PositiveInt = 5_000
        """The most pairs of the validation set that an evaluation reads; if there are more, they are evenly spaced."""

        @field_validator("compile")
        @classmethod
        def _shapes_vary(cls, value: bool) -> bool:
            if value:
                raise ValueError(
                    "must be false: the shape of a batch changes at nearly every step, and each shape would be "
                    "compiled again"
                )
            return value

    class Evaluation(config.Config):
        """What `axon evaluate RUN` measures on, as options: `--src FILE --ref FILE` and how to translate."""

        src: Path
        """A file of sentences to translate, one a line; plain or gzip."""
        ref: Path
        """Their reference translations, line by line."""
        beam: Beam = Search().beam
        """Candidates kept side by side."""
        length_penalty: Alpha = Search().length_penalty
        """α of the length penalty."""
        average: Count = 1
        """How many of the latest checkpoints to average into the measured model."""
        tokenize: Tokenize | None = None
        """sacrebleu's tokenizer for BLEU: `13a`, `zh`, `char`, …; left out, the run's, or else it is chosen by the
        references' script."""

        def evaluate(self, folder: Path, device: str) -> Mapping[str, float | str]:
            """Return `bleu` of translations against references, sacrebleu's `signature`, and what was counted.

            Raises:
                DataError: a file cannot be read, or they differ in length.
                ContextError: a sentence is too long for the model.
            """
            sources, references = read_lines(self.src), read_lines(self.ref)
            check_aligned(sources, self.src, references, self.ref)
            translator = Translator.load(*latest_models(folder, self.average), device=device)
            search = Search(beam=self.beam, length_penalty=self.length_penalty)
            found = translator.translate(sources, search, place=f"line {{:,}} of {self.src}".format, progress=_tell)
            score, signature = bleu([best.text for best, *_ in found], references, self.tokenize)
            counts = {
                "sentences": len(sources),
                "empty_lines": sum(not source.strip() for source in sources),
                "empty_references": sum(not reference.strip() for reference in references),
                "cut_off": sum(not best.ended for best, *_ in found),
            }
            return {"bleu": score, **counts, "signature": signature}

    config: Config
    unit = "tokens"
    next_command = "axon translate {run}"
    trainable = ("model",)
    examples = (
        {
            "model": {"type": "transformer", "dim": 16, "n_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
            "trainer": {"type": "translation", "batch_size": 64},
            "data": {"train": {"reverse": 40}, "valid": {"reverse": 4}, "tokenizer": "byte"},
        },
    )

    def __init__(self, config: Config, models: Mapping[str, nn.Module], data: ParallelData) -> None:
        super().__init__(config, models)
        model = models["model"]
        if not isinstance(model, Transformer):
            raise ContractError(f"the trainer translation needs a Transformer as its model, got {type(model).__name__}")
        self.model = model
        self.data, self.tokenizer = data, data.tokenizer
        self.train, self.valid = (
            Encoded.of(pairs, data.tokenizer, model.config.context, role)
            for role, pairs in (("train", data.train), ("valid", data.valid))
        )
        lengths = [len(row) for row in self.train.sources], [len(row) - 1 for row in self.train.targets]
        self._tokenize = config.tokenize or tokenizer_of([target for _, target in self.valid.pairs])
        with at("trainer"):
            self._batches = TokenBatches(*lengths, config.batch_size, Key((config.seed, "batches")))

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        """Build the trainer from a recipe's tables `model`, `data` and `trainer`; see `Trainer.from_recipe`."""
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        with at("data"):
            settings = validate(ParallelConfig, recipe.data)
            data = ParallelData.load(settings, None if saved is None else Tokenizer.load(saved))
        with at("model"):
            model = new_model(recipe.model, config.seed, vocab_size=data.tokenizer.vocab_size)
        return cls(config, {"model": model}, data)

    def data_digest(self) -> str:
        """Return a checksum of all pairs, as texts and as tokens."""
        return digest(*((part.pairs, part.sources, part.targets) for part in (self.train, self.valid)))

    @property
    def steps_per_epoch(self) -> int:
        """How many steps it takes to see every pair once."""
        return self._batches.per_epoch

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the pairs of a step, padded: `source` (b m), which ends with `eos`, and `target` (b n+1)."""
        return self.train.batch(self._batches[step].tolist())

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the number of predicted tokens, padding not counted."""
        return dict.fromkeys(("loss", "nll"), (data["target"][:, 1:] != PAD).sum())

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the summed label-smoothed cross-entropy, and the plain one as a metric, in nats."""
        source, target = data["source"], data["target"]
        features = self.model.decode(target[:, :-1], self.model.encode(source, valid=valid_tokens(source)))
        real = target[:, 1:] != PAD
        loss, nll = linear_cross_entropy(
            features[real], self.model.embedding.weight, target[:, 1:][real], self.config.label_smoothing
        )
        return {"loss": loss, "nll": nll}

    def cross_entropy(self) -> float:
        """Return the mean cross-entropy of the validation set's tokens, without smoothing, in nats per token."""
        return self._cross_entropy(self.valid)

    def _cross_entropy(self, part: Encoded) -> float:
        total = torch.zeros((), dtype=torch.float64)
        tokens = 0.0
        for batch in track_own(part.batches(_ROWS), len(part.pairs), lambda batch: len(batch["source"])):
            data = {name: rows.to(self.config.device) for name, rows in batch.items()}
            total += self.loss(data)["nll"].cpu().double()
            tokens += float(self.counts(data)["nll"])
        sums = sum_numbers({"nats": total.item(), "tokens": tokens})
        return sums["nats"] / sums["tokens"]

    def evaluate(self) -> dict[str, float]:
        """Return `loss` in nats per token, `perplexity` and `bleu` of the validation set.

        At most `eval_sentences` of its pairs are read. If those are not all, `sentences` says how many were read, and
        `held_out_sentences` how many there are.
        """
        of = len(self.valid.pairs)
        part = self.valid.part(evenly_spaced(of, self.config.eval_sentences))
        loss = self._cross_entropy(part)
        sources, references = zip(*part.pairs, strict=True)
        translator = Translator(self.model, self.tokenizer)
        found = translator.translate(own(sources), self.config.search, batch_size=_ROWS, progress=_tell)
        texts = restored([translations[0].text for translations in found])
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # as far as a float can hold it
            "bleu": bleu(texts, references, self._tokenize).score,
            **coverage("sentences", len(part.pairs), of),
        }

    def evaluation_facts(self) -> dict[str, str]:
        """Return sacrebleu's `signature` of the `bleu` in evaluations."""
        reference = [self.valid.pairs[0][1]]
        return {"signature": bleu(reference, reference, self._tokenize).signature}  # whatever the texts are

    def sample(self) -> str:
        """Return the first sentences of the validation set and their translations."""
        sources = [source for source, _ in self.valid.pairs[:3]]
        found = Translator(self.model, self.tokenizer).translate(sources)
        return "\n".join(f"{source}\n  → {best.text}" for source, (best, *_) in zip(sources, found, strict=True))


def _tell(done: int, total: int) -> None:
    """Report how many sentences of an evaluation are translated."""
    report_progress(done, total, "translating")
