"""Token shards as the data of a language model: folders mixed by weight, a part of each held out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from axon_core import config
from axon_core.checkpoint.digests import digest
from axon_core.errors import DataError
from axon_core.paths import expanded
from axon_core.randomness import Key
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.language_data import SourcePlan
from axon_core.text.mixture import Mixture
from axon_core.text.shards.folder import ShardFolder
from axon_core.text.shards.windows import ShardReader, ShardWindows, Stretch
from axon_core.text.tokenizer import Tokenizer

__all__ = ["TokenData", "TokenExamples", "TokensConfig"]


class TokensConfig(config.Config):
    """The `[data]` table of a recipe whose data are token shards, as `axon tokenize` writes them."""

    type: Literal["tokens"] = "tokens"
    """What the data are."""
    path: str | None = None
    """A folder of token shards; `~` and `$VARIABLES` are filled in."""
    paths: Mapping[str, PositiveFloat] | None = Field(default=None, min_length=1)
    """Several folders, each with its weight: its share of the windows, divided by the sum of all weights."""
    held_out: float = Field(default=0.01, gt=0, lt=1)
    """The fraction of each folder's tokens, at their end, that is kept from training and used for evaluation."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """The fraction of each folder's training part, at its end, that is not trained on either and that evaluation reads
    instead of the held-out part, which then nothing reads: to choose settings by. Left out, none."""
    documents: bool = False
    """Whether the documents of a window are masked from one another, each with positions that begin at 0."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.path is None) == (self.paths is None):
            raise ValueError("give either path, one folder, or paths, several with their weights")
        return self

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights by path."""
        return self.paths or {self.path or "": 1.0}


@dataclass(frozen=True)
class _TokenSource:
    """A folder with what is trained on and what is held out of it."""

    name: str
    weight: float
    reader: ShardReader
    train: Sequence[Stretch]
    held_out: Sequence[Stretch]

    @classmethod
    def of(cls, name: str, weight: float, share: float, validation: float | None = None) -> Self:
        """Open a folder, and hold out a share of its tokens, from the end of a document on if one ends near.

        With `validation`, what evaluation reads is that share of the rest, and the tokens held out are in neither part.
        """
        reader = ShardReader(ShardFolder(expanded(name)))
        index = reader.folder.index
        rest = kept = index.tokens - max(2, ceil(index.tokens * share))
        if validation is not None:
            rest -= max(2, ceil(rest * validation))
        train: list[Stretch] = []
        held_out: list[Stretch] = []
        for number, shard in enumerate(index.shards):
            end = shard.tokens if validation is None else _cut(reader, number, kept, shard.tokens)
            cut = _cut(reader, number, rest, end)
            train += [Stretch(number, 0, cut)] * (cut > 0)
            held_out += [Stretch(number, cut, end)] * (cut < end - 1)
            rest, kept = rest - shard.tokens, kept - shard.tokens
        if not held_out:
            raise DataError(f"{name} has too few tokens to hold out two, got {index.tokens}; give more text")
        return cls(name, weight, reader, train, held_out)


def _cut(reader: ShardReader, number: int, cut: int, end: int) -> int:
    """Return where to divide the first `end` tokens of a shard: at `cut`, or where the document there ends."""
    cut = max(0, min(cut, end))
    if not 0 < cut < end:
        return cut
    ends = reader.opened(number).ends
    at = bisect_left(ends, cut)
    return ends[at] if at < len(ends) and ends[at] < end - 1 else cut


@dataclass(frozen=True)
class TokenData:
    """Folders of token shards, mixed by weight; nothing of them is in memory but their indices.

    Attributes:
        settings: the table of the recipe.
        tokenizer: what made all shards.
    """

    settings: TokensConfig
    tokenizer: Tokenizer
    _sources: Sequence[_TokenSource]

    @classmethod
    def load(cls, settings: TokensConfig, tokenizer: Tokenizer | None = None) -> Self:
        """Open all folders, read their indices, and compare the sizes of all shards.

        Args:
            settings: the table of the recipe.
            tokenizer: the model's, if it has one already.

        Raises:
            DataError: a folder is unfinished, a file is missing, truncated or damaged, a folder is given twice, or two
                tokenizers differ.
        """
        shares = settings.held_out, settings.validation
        sources = [_TokenSource.of(name, weight, *shares) for name, weight in settings.weights.items()]
        first = sources[0].reader.folder
        if len({source.reader.folder.path.resolve() for source in sources}) < len(sources):
            raise DataError("paths names a folder twice; name it once, with the sum of its weights")
        for folder in (source.reader.folder for source in sources[1:]):
            if folder.index.tokenizer != first.index.tokenizer:
                raise DataError(
                    f"{folder.path} and {first.path} were made with different tokenizers, of "
                    f"{folder.index.vocab_size:,} and {first.index.vocab_size:,} tokens; tokenize one of them again "
                    f"with --tokenizer {first.path}"
                )
        if tokenizer is not None and tokenizer_fingerprint(tokenizer) != first.index.tokenizer:
            raise DataError(
                f"{first.path} was made with a tokenizer other than the model's, of {first.index.vocab_size:,} tokens "
                f"instead of {tokenizer.vocab_size:,}; tokenize it again with the model's folder as --tokenizer"
            )
        return cls(settings, first.tokenizer(), sources)

    @property
    def digest(self) -> str:
        """A checksum of all tokens and weights, from the checksums in the indices."""
        shards = [[shard.sha256 for shard in source.reader.folder.index.shards] for source in self._sources]
        settings = [self.settings.held_out, self.settings.documents, [source.weight for source in self._sources]]
        settings += [] if self.settings.validation is None else [self.settings.validation]
        return digest(self._sources[0].reader.folder.index.tokenizer, settings, shards)

    @property
    def held_out_targets(self) -> int:
        """How many held-out tokens are predicted: all but the first of each stretch."""
        return sum(stretch.tokens - 1 for source in self._sources for stretch in source.held_out)

    def examples(self, context: int, key: Key) -> TokenExamples:
        """Return windows of `context + 1` tokens in an order that depends on `key`.

        Raises:
            DataError: no stretch of a folder is as long as a window.
        """
        return TokenExamples(self._sources, context, key, self.settings)

    def held_out_examples(self, context: int, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield windows that cover what is held out of every folder: each target exactly once.

        All windows have `context + 1` tokens, except that the last of a shard may have fewer and comes alone. If that
        makes more than `most` targets, yield only full windows, spread evenly, that together have at least `most`.
        """
        held = [(source.reader, stretch) for source in self._sources for stretch in source.held_out]
        ends = np.cumsum([(stretch.tokens - 1) // context for _, stretch in held])
        whole, spread = int(ends[-1]), most is not None and -(-most // context) < ends[-1]
        wanted = -(-most // context) if spread and most is not None else whole
        for i in range(0, wanted, size):
            rows: list[tuple[ShardReader, int, int]] = []
            for window in (number * whole // wanted for number in range(i, min(i + size, wanted))):
                part = int(np.searchsorted(ends, window, side="right"))
                reader, stretch = held[part]
                inside = window - (int(ends[part - 1]) if part else 0)
                rows.append((reader, stretch.shard, stretch.begin + inside * context))
            yield _batch(rows, context, self.settings.documents)
        for reader, stretch in () if spread else held:
            if rest := (stretch.tokens - 1) % context:
                yield _batch([(reader, stretch.shard, stretch.end - 1 - rest)], rest, self.settings.documents)

    def beginning(self, size: int) -> list[int]:
        """Return the first held-out tokens of the first folder, up to `size` of them."""
        source = self._sources[0]
        stretch = source.held_out[0]
        return source.reader.window(stretch.shard, stretch.begin, min(size, stretch.tokens)).tolist()


class TokenExamples:
    """Windows of several folders, mixed by weight.

    Of the examples 0 … n − 1, a folder has its share n · w, less than one off, at every n. Its windows come in epochs:
    each once, then each once again in another order. An example is computed from its number.

    Args:
        sources: the folders.
        context: number of targets in a window.
        key: what the order depends on.
        settings: whether the documents of each window are numbered, and what evaluation reads.

    Raises:
        DataError: no stretch of a folder is as long as a window.
    """

    def __init__(self, sources: Sequence[_TokenSource], context: int, key: Key, settings: TokensConfig) -> None:
        self._sources, self._context, self._documents = sources, context, settings.documents
        self._evaluated: Literal["held out", "for validation"] = (
            "held out" if settings.validation is None else "for validation"
        )
        self._mixture = Mixture([source.weight for source in sources])
        self._windows = [ShardWindows(source.train, context, key(i)) for i, source in enumerate(sources)]
        for source, windows in zip(sources, self._windows, strict=True):
            if not windows.per_epoch:
                raise DataError(
                    f"{source.name} must have a shard with at least context + 1 = {context + 1} tokens to train on; "
                    "give more text or choose a shorter context"
                )

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """Return the examples of a step: `tokens` `(b n+1)`, and `documents` `(b n)` if they are numbered.

        Raises:
            DataError: a shard is missing, truncated or damaged.
        """
        which, numbers = self._mixture.at(np.arange(step * size, (step + 1) * size))
        rows = [(self._sources[0].reader, 0, 0)] * size
        for i in np.unique(which):
            chosen = np.flatnonzero(which == i)
            for place, found in zip(chosen, self._windows[i].at(numbers[chosen]), strict=True):
                rows[place] = (self._sources[i].reader, *found)
        return _batch(rows, self._context, self._documents)

    def sources(self, examples: int) -> list[SourcePlan]:
        """Return the folders, and how often so many examples go through each."""
        parts = zip(self._sources, self._windows, self._mixture.shares, strict=True)
        return [
            SourcePlan(
                name=source.name,
                tokens=sum(stretch.tokens for stretch in source.train),
                held_out=sum(stretch.tokens for stretch in source.held_out),
                evaluated=self._evaluated,
                share=float(share),
                epochs=float(share) * examples / windows.per_epoch,
            )
            for source, windows, share in parts
        ]


def _batch(rows: Sequence[tuple[ShardReader, int, int]], context: int, documents: bool) -> dict[str, Tensor]:
    batch = {"tokens": torch.stack([reader.window(shard, begin, context + 1) for reader, shard, begin in rows])}
    if documents:
        batch["documents"] = torch.stack([reader.documents(shard, begin, context) for reader, shard, begin in rows])
    return batch
