"""Text data: read, split, tokenized, and sampled in a deterministic order that can be entered at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from axon_core import config
from axon_core.checkpoint.digests import digest
from axon_core.config import at
from axon_core.documents import not_utf8
from axon_core.errors import AxonError, DataError
from axon_core.escaping import shortened
from axon_core.folders import TEXT_SUFFIXES, data_files, full_suffix
from axon_core.paths import expanded
from axon_core.randomness import Key
from axon_core.registry.spec import Spec
from axon_core.text.language_data import SourcePlan, piece_lengths
from axon_core.text.order import across_epochs
from axon_core.text.schemas.recognise import listed_fields
from axon_core.text.schemas.rows import STRUCTURED, data_rows
from axon_core.text.tokenizer import Tokenizer, train_tokenizer

__all__ = ["TextConfig", "TextData", "TextExamples", "Windows", "read_text", "split_text"]


class TextConfig(config.Config):
    """The `[data]` table of a recipe whose data is one long text."""

    type: Literal["text"] = "text"
    """What the data are: `text`, or `tokens` for the table `TokensConfig`."""
    path: str | None = None
    """A UTF-8 text file, or a folder of them (`TEXT_SUFFIXES`); `~` and `$VARIABLES` are filled in. Left out: Python's
    own reference."""
    text_field: str | None = None
    """The field that holds the text, if the file has rows: JSON lines, also as `.gz`, a `.json` array, or parquet."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The fraction of the text, at its end, that is kept from training and used for evaluation."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """The fraction of the training part, at its end, that is not trained on either and that evaluation reads instead of
    the held-out part, which then nothing reads: to choose settings by. Left out, none."""
    tokenizer: Spec = Field(default_factory=lambda: Spec(type="char"), validate_default=True)
    """How text becomes tokens: `byte`, `char` or `sentencepiece`, with options."""


def read_text(path: str | Path | None = None, text_field: str | None = None) -> str:
    """Return the text of a UTF-8 file, or of a folder's text files in the order of their paths, joined by newlines.

    In a folder, text files are those with a suffix of `TEXT_SUFFIXES`; one warning names what else is there
    (`data_files`). A file given by its own name may have any suffix. Without a path it is the English reference text
    that every CPython ships in `pydoc_data.topics`.

    A file of rows is read with a `text_field` only: it is the texts of that field, joined by newlines.

    Raises:
        DataError: the path names an unset variable, does not exist, cannot be read, is not UTF-8, holds no text, or
            holds rows without a `text_field` or no rows with one.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    place = expanded(path)
    if not place.exists():
        raise DataError(f"no such file or folder: {place} (current folder: {Path.cwd()})")
    if text_field is not None:
        text = "\n".join(_column(place, text_field))
    else:
        _refuse_rows(place)
        files = data_files(place, "text", TEXT_SUFFIXES) if place.is_dir() else [place]
        text = "\n".join(_read_file(file) for file in files)
    if not text.strip():
        raise DataError(f"{place} has no text; give a UTF-8 text file or a folder of them")
    return text


def _refuse_rows(place: Path) -> None:
    """Raise `DataError` if a file holds rows, whose braces and names of fields are no text to learn."""
    suffix = full_suffix(place)
    if place.is_dir() or suffix not in STRUCTURED:
        return
    try:
        first = next(data_rows(place)[1], None)
    except AxonError:
        if ".json" in (suffix, suffix.removesuffix(".gz")):  # JSON of another kind, to be learned as it is
            return
        raise
    fields = first.fields if first else {}
    guess = "text" if "text" in fields or not fields else next(iter(fields))
    raise DataError(
        f"{place} holds rows, not plain text: {first.place if first else 'it'} has {listed_fields(fields)}. Name the "
        f"field with the text, as in data.text_field = {shortened(repr(guess), 40)}, or use a trainer of such rows"
    )


def _column(place: Path, field: str) -> Iterator[str]:
    """Yield the texts in a field of a file's rows."""
    if place.is_dir() or full_suffix(place) not in STRUCTURED:
        known = ", ".join(sorted(STRUCTURED))
        raise DataError(f"data.text_field needs a file of rows ({known}), but {place} is none; leave text_field out")
    for row in data_rows(place)[1]:
        if not isinstance(text := row.fields.get(field), str):
            found = f"{shortened(repr(text), 40)} there" if field in row.fields else listed_fields(row.fields)
            raise DataError(f"{row.place} must have a text in the field {shortened(repr(field), 40)}, but has {found}")
        yield text.replace("\r\n", "\n")


def _read_file(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{not_utf8(file, error)}, or leave it out") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


class Windows:
    """Samples windows of `context + 1` tokens: inputs, and targets shifted by one.

    An epoch cuts the text, from a random offset, into windows that follow each other, and visits them in random order:
    each token is a target at most once an epoch, and almost all are. The offset changes from epoch to epoch, so that
    windows begin everywhere. Sampling keeps no state: example i is the same whenever it is asked for.

    Args:
        tokens: the text.
        context: number of targets in a window.
        key: what the order depends on.

    Raises:
        DataError: the text has fewer than `context + 1` tokens.
    """

    def __init__(self, tokens: Int[Tensor, " n"], context: int, key: Key) -> None:
        if len(tokens) < context + 1:
            raise DataError(
                f"the text must have at least context + 1 = {context + 1} tokens, got {len(tokens)}; give more text "
                "or choose a shorter context"
            )
        self.tokens, self.context, self._key = tokens, context, key
        self.per_epoch = max(1, (len(tokens) - context) // context)
        self._slack = len(tokens) - self.per_epoch * context  # offsets that leave all windows whole
        self._within = torch.arange(context + 1)
        self._starts = lru_cache(maxsize=2)(self._epoch)

    def batch(self, step: int, size: int) -> Int[Tensor, "b n+1"]:
        """Return the windows of examples `step * size` up to the next step's first.

        Raises:
            UsageError: a step would go through far more epochs than make sense; see `across_epochs`.
        """
        starts = across_epochs(self._starts, self.per_epoch, step, size)
        return self.tokens[starts[:, None] + self._within].long()

    def _epoch(self, epoch: int) -> Int[Tensor, " w"]:
        generator = self._key(epoch).generator()
        offset = torch.randint(self._slack, (), generator=generator)
        return offset + self.context * torch.randperm(self.per_epoch, generator=generator)


class TextExamples:
    """The windows of a text as examples.

    Args:
        windows: what to sample.
        held_out: how many tokens evaluation reads.
        validation: whether those are a validation part.
    """

    def __init__(self, windows: Windows, held_out: int, *, validation: bool = False) -> None:
        self._windows, self._held_out, self._validation = windows, held_out, validation

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """Return the windows of a step: `tokens` `(b n+1)`. Raises `UsageError` as `Windows.batch` does."""
        return {"tokens": self._windows.batch(step, size)}

    def sources(self, examples: int) -> list[SourcePlan]:
        """Return the text, and how often so many examples go through it."""
        tokens, epochs = len(self._windows.tokens), examples / self._windows.per_epoch
        part = "for validation" if self._validation else "held out"
        return [
            SourcePlan(name="text", tokens=tokens, held_out=self._held_out, evaluated=part, share=1.0, epochs=epochs)
        ]


def split_text(text: str, held_out: float) -> tuple[str, str]:
    """Return the part of a text to train on, and the share `held_out` at its end."""
    cut = int(len(text) * (1 - held_out))
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class TextData:
    """One text as tokens: the part to train on and the part held out.

    Attributes:
        tokenizer: what turned the text into tokens.
        train: tokens of the first part.
        held_out: tokens of the rest, which evaluation reads.
        validation: whether that is a validation part, and the text went on behind it.

    Raises:
        DataError: fewer than two tokens are held out.
    """

    tokenizer: Tokenizer
    train: Int[Tensor, " n"]
    held_out: Int[Tensor, " m"]
    validation: bool = False

    def __post_init__(self) -> None:
        if len(self.held_out) < 2:
            raise DataError(
                f"the {'validation' if self.validation else 'held-out'} part must have at least 2 tokens, got "
                f"{len(self.held_out)}; give more text or a larger {'validation' if self.validation else 'held_out'}"
            )

    @classmethod
    def load(cls, values: TextConfig | dict[str, Any], tokenizer: Tokenizer | None = None) -> Self:
        """Read the text, split it, and tokenize both parts.

        Without a `tokenizer` one is trained, on the whole text: its vocabulary must cover the held-out part too. With a
        validation part, the held-out part is cut off first, and what is left is the whole text.

        Raises:
            ConfigError: `values` break a rule of `TextConfig`.
            DataError: the text cannot be read or tokenized.
        """
        settings = values if isinstance(values, TextConfig) else config.validate(TextConfig, values)
        text, share = read_text(settings.path, settings.text_field), settings.held_out
        if settings.validation is not None:
            (text, _), share = split_text(text, share), settings.validation
        if tokenizer is None:
            with at("tokenizer"):
                tokenizer = train_tokenizer(settings.tokenizer, text)
        return cls.of(text, tokenizer, share, validation=settings.validation is not None)

    @classmethod
    def of(
        cls, text: str, tokenizer: Tokenizer | None = None, held_out: float = 0.1, *, validation: bool = False
    ) -> Self:
        """Split a given text and tokenize both parts, by default into characters; the end may be for `validation`.

        Raises:
            DataError: the text cannot be tokenized, or is too short.
        """
        tokenizer = tokenizer or train_tokenizer("char", text)
        parts = split_text(text, held_out)
        train, rest = (torch.tensor(tokenizer.encode(part), dtype=torch.int32) for part in parts)
        return cls(tokenizer, train, rest, validation)

    @property
    def digest(self) -> str:
        """A checksum of the text's tokens, which tells it apart from others."""
        return digest(self.train, self.held_out)

    def examples(self, context: int, key: Key) -> TextExamples:
        """Return windows of `context + 1` tokens in an order that depends on `key`.

        Raises:
            DataError: the text has fewer tokens than that.
        """
        return TextExamples(Windows(self.train, context, key), len(self.held_out), validation=self.validation)

    @property
    def held_out_targets(self) -> int:
        """How many held-out tokens are predicted: all but the first."""
        return len(self.held_out) - 1

    def beginning(self, size: int) -> list[int]:
        """Return the first held-out tokens, up to `size` of them."""
        return self.held_out[:size].tolist()

    def held_out_examples(self, context: int, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield the windows of `held_out_batches` as examples."""
        return ({"tokens": batch} for batch in self.held_out_batches(context, size, most))

    @property
    def held_out_bytes(self) -> int:
        """UTF-8 length of what evaluation scores: the held-out part without its first token."""
        return int(self.piece_lengths[self.held_out[1:]].sum())

    def held_out_batches(self, context: int, size: int, most: int | None = None) -> Iterator[Int[Tensor, "b n+1"]]:
        """Yield windows that cover the held-out part: each token after the first is a target exactly once.

        All windows have `context + 1` tokens except the last, which holds what is left and comes alone. If that makes
        more than `most` targets, yield only full windows, spread evenly, that together have at least `most`.
        """
        targets = len(self.held_out) - 1
        whole = targets // context
        windows = self.held_out.unfold(0, context + 1, context) if whole else self.held_out[None, :0]
        if most is not None and (wanted := -(-most // context)) < whole:
            windows, targets = windows[torch.arange(wanted) * whole // wanted], 0
        for batch in windows.split(size) if whole else ():
            yield batch.long()
        if targets % context:
            yield self.held_out[whole * context :].long()[None]

    @cached_property
    def piece_lengths(self) -> Int[Tensor, " v"]:
        """The UTF-8 length of each token's text."""
        return piece_lengths(self.tokenizer)
