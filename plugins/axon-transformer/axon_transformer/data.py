"""Parallel text as tokens: read, checked, encoded by a joint vocabulary, and counted where something is left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from axon_core import ConfigError, DataError, at, config
from axon_core.registry import Spec
from axon_core.text import PAD, Tokenizer, train_tokenizer
from axon_core.training import works_apart
from axon_transformer.batches import pad
from axon_transformer.corpus import Corpus, SentencePair, normalised, read_pairs

_log = logging.getLogger("axon")

__all__ = ["Encoded", "ParallelConfig", "ParallelData", "markers", "valid_tokens"]


class ParallelConfig(config.Config):
    """The `[data]` table of a recipe whose data are pairs of sentences."""

    train: Corpus
    """The pairs to train on."""
    valid: Corpus
    """The pairs to evaluate on."""
    tokenizer: Spec = Field(
        default_factory=lambda: Spec.of({"type": "sentencepiece", "vocab_size": 8000}), validate_default=True
    )
    """How both languages become tokens: `sentencepiece`, with options, or `byte`; trained on `train`."""


@dataclass(frozen=True)
class Encoded:
    """Pairs as tokens: a source ends with `eos`; a target begins with `bos` and ends with `eos`.

    Attributes:
        pairs: the texts.
        sources: their sources.
        targets: their targets.
    """

    pairs: Sequence[SentencePair]
    sources: Sequence[list[int]]
    targets: Sequence[list[int]]

    @classmethod
    def of(cls, pairs: Sequence[SentencePair], tokenizer: Tokenizer, context: int, role: str) -> Self:
        """Encode pairs. Those with an empty side, or too long for `context`, are left out; a warning counts them.

        Raises:
            DataError: no pair is left.
        """
        sources = [tokenizer.encode(normalised(source), eos=True) for source, _ in pairs]
        targets = [tokenizer.encode(normalised(target), bos=True, eos=True) for _, target in pairs]
        empty = {i for i, (source, target) in enumerate(pairs) if not (source.strip() and target.strip())}
        lengths = [max(len(source), len(target) - 1) for source, target in zip(sources, targets, strict=True)]
        long = {i for i, length in enumerate(lengths) if length > context} - empty
        left_out = {
            "with an empty side": empty,
            f"longer than the model's context of {context} tokens": long,
        }
        for reason, numbers in left_out.items():
            if numbers:
                _log.warning(
                    "%s data: %s of %s pairs left out, %s (the first is pair %s)",
                    *(role, f"{len(numbers):,}", f"{len(pairs):,}", reason, f"{min(numbers) + 1:,}"),
                )
        kept = [i for i in range(len(pairs)) if i not in empty | long]
        if not kept:
            raise DataError(f"no pair of the {role} data can be used: {len(empty):,} are empty, {len(long):,} too long")
        return cls([pairs[i] for i in kept], [sources[i] for i in kept], [targets[i] for i in kept])

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return these pairs, padded at their ends: `source` (b m) and `target` (b n+1)."""
        return {
            "source": pad([self.sources[i] for i in numbers]),
            "target": pad([self.targets[i] for i in numbers]),
        }

    def part(self, numbers: Sequence[int]) -> Self:
        """Return these pairs alone."""
        pairs, sources, targets = self.pairs, self.sources, self.targets
        return type(self)([pairs[i] for i in numbers], [sources[i] for i in numbers], [targets[i] for i in numbers])

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield all pairs, `size` at a time, those of about the same length together."""
        order = sorted(range(len(self.pairs)), key=lambda i: (len(self.targets[i]), len(self.sources[i])))
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])


@dataclass(frozen=True)
class ParallelData:
    """Pairs of sentences and the tokenizer of both languages.

    Attributes:
        tokenizer: what turns both into tokens.
        train: pairs to train on.
        valid: pairs to evaluate on.
    """

    tokenizer: Tokenizer
    train: Sequence[SentencePair]
    valid: Sequence[SentencePair]

    @classmethod
    def load(cls, settings: ParallelConfig, tokenizer: Tokenizer | None = None) -> Self:
        """Read the pairs; without a `tokenizer`, one is trained on the training pairs.

        Raises:
            ConfigError: the tokenizer has no markers for begin and end, or its options break a rule.
            DataError: the data cannot be read, or are too few for the tokenizer.
        """
        train, valid = (read_pairs(getattr(settings, role), role) for role in ("train", "valid"))
        with at("tokenizer"):
            if tokenizer is None:
                texts = (normalised(text) for pair in train for text in pair)
                tokenizer = train_tokenizer(settings.tokenizer, "\n".join(texts))
            if tokenizer.bos is None or tokenizer.eos is None:
                message = (
                    f"must mark begin and end, as byte and sentencepiece do, but {settings.tokenizer.type} does not"
                )
                raise ConfigError([(("type",), message)])
        return cls(tokenizer, train, valid)


def markers(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return `bos` and `eos`. Raises `DataError` if the tokenizer lacks one."""
    if tokenizer.bos is None or tokenizer.eos is None:
        raise DataError(f"a {tokenizer.type} tokenizer does not mark begin and end, which translation needs")
    return tokenizer.bos, tokenizer.eos


def valid_tokens(rows: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"] | None:
    """Return which entries are tokens, or None where all are; a GPU is not waited for to find out."""
    valid = rows != PAD
    return None if not works_apart(rows.device) and bool(valid.all()) else valid
