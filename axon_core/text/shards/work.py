"""One unit of work: the shards of a few spans, written as their passages are read, and continued after a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from axon_core.errors import DataError
from axon_core.text.encoding import TokenArray, array_encoder, token_dtype
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards.files import Shard, ShardFacts, ShardWriter, written_shard
from axon_core.text.shards.folder import token_shard_name
from axon_core.text.shards.inputs import Span
from axon_core.text.shards.passages import Passage, passages
from axon_core.text.tokenizer import Tokenizer

__all__ = ["Job", "PassageEncoder", "UnitProgress", "finished_shards", "run_unit"]

_REPORT = 1 << 20
"""Bytes of text after which progress is reported."""


class UnitProgress(NamedTuple):
    """What has been done since the last report."""

    read: int
    """Bytes of the files that were read."""
    tokens: int
    """Tokens that they became."""


@dataclass(frozen=True)
class Job:
    """What all units of work have in common.

    Attributes:
        folder: where the shards go, beside the saved tokenizer.
        field: the field of a JSON object, or the column of a table, that holds the text.
        skip: whether lines and rows that are no documents are left out.
        shard_bytes: bytes of text after which a unit begins another shard.
    """

    folder: Path
    field: str
    skip: bool
    shard_bytes: int

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder."""
        return Tokenizer.load(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return tokenizer_fingerprint(self.tokenizer)


def finished_shards(folder: Path, unit: int, fingerprint: str) -> list[ShardFacts]:
    """Return what is in the shards of a unit that are there: the unit is done if the last of them says so.

    A shard that is damaged, or of another tokenizer, is removed with all that follow it, and made again.
    """
    found: list[ShardFacts] = []
    while (path := folder / token_shard_name(unit, len(found))).exists():
        try:
            shard = Shard(path)
            shard.close()
        except DataError:
            break
        if shard.facts.tokenizer != fingerprint or (found and found[-1].last):
            break
        found.append(shard.facts)
    for stale in folder.glob(f"{unit:05}-*.safetensors"):
        if stale.name not in {token_shard_name(unit, part) for part in range(len(found))}:
            stale.unlink()
    return found


class PassageEncoder:
    """Turns passages into tokens, with the markers of their documents: `eos`, and `bos` if texts begin with it.

    Args:
        job: names the tokenizer, and says whether what is no document is left out.
    """

    def __init__(self, job: Job) -> None:
        tokenizer, self._skip = job.tokenizer, job.skip
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._encode = array_encoder(tokenizer)
        markers = ([tokenizer.bos] if tokenizer.add_bos else [], [tokenizer.eos])
        self._bos, self._eos = (np.array([id for id in ids if id is not None], self.dtype) for ids in markers)

    def __call__(self, passage: Passage) -> TokenArray | None:
        """Return the tokens of a passage, or None if it is left out.

        Raises:
            DataError: it is no document or cannot be encoded, and is not to be left out; the message names it.
        """
        wrong = passage.wrong
        if not wrong:
            try:
                found = self._encode(passage.text, passage.first)
            except DataError as error:
                if not (passage.first and passage.last):
                    raise DataError(f"{passage.place()}: {error}") from None
                wrong = f"cannot be encoded: {error}"
            else:
                return np.concatenate([self._bos] * passage.first + [found] + [self._eos] * passage.last)
        if self._skip:
            return None
        raise DataError(f"{passage.place()} {wrong}. Correct it, or leave out all such documents with --skip-invalid")


def run_unit(job: Job, encode: PassageEncoder, number: int, unit: Sequence[Span]) -> Iterator[UnitProgress]:
    """Write the shards of a unit that are missing, and yield how far that is.

    Raises:
        DataError: a file cannot be read, or a document is invalid and not to be left out.
        CheckpointError: a shard cannot be written.
    """
    done = finished_shards(job.folder, number, job.fingerprint)
    if done and done[-1].last:
        return
    source = _Source(unit, job.field)
    for _ in range(done[-1].position if done else 0):
        next(source)
    yield UnitProgress(source.progress(), 0)
    part, last = len(done), False
    while not last:
        with written_shard(job.folder / token_shard_name(number, part), encode.dtype) as shard:
            yield from _fill(shard, source, encode, job.shard_bytes)
            last = source.ended
            shard.finish(source.position, last, job.fingerprint)
        part += 1


def _fill(shard: ShardWriter, source: _Source, encode: PassageEncoder, size: int) -> Iterator[UnitProgress]:
    """Write passages into a shard until it is large enough; a unit of files that are not packed fits into one."""
    reported_bytes = reported_tokens = 0
    while shard.text_bytes < 2 * size and (passage := next(source, None)) is not None:
        tokens = encode(passage)
        if tokens is None:
            shard.left_out += 1
        elif passage.text or not (passage.first and passage.last):
            shard.add(tokens)
            shard.text_bytes += len(passage.text.encode())
            if passage.last:
                shard.end_document()
        if shard.text_bytes - reported_bytes >= _REPORT:
            yield UnitProgress(source.progress(), shard.tokens - reported_tokens)
            reported_bytes, reported_tokens = shard.text_bytes, shard.tokens
    yield UnitProgress(source.progress(), shard.tokens - reported_tokens)


class _Source(Iterator[Passage]):
    """The passages of a unit, one after the other, and how much of it they are."""

    def __init__(self, unit: Sequence[Span], field: str) -> None:
        self.position = self._read = self._told = 0
        self._passages = self._all(unit, field)
        self._next = next(self._passages)

    @property
    def ended(self) -> bool:
        """Whether there is no further passage."""
        return self._next[1] is None

    def __next__(self) -> Passage:
        _, passage = self._next
        if passage is None:
            raise StopIteration
        self._next = next(self._passages)
        self._read = self._next[0]
        self.position += 1
        return passage

    def progress(self) -> int:
        """Return how many bytes have been read since the last call."""
        new, self._told = self._read - self._told, self._read
        return new

    def _all(self, unit: Sequence[Span], field: str) -> Iterator[tuple[int, Passage | None]]:
        """Yield each passage after how many bytes were read before it, and None after the last."""
        before = read = 0
        for span in unit:
            for passage in passages(span, field):
                yield read, passage
                read = before + min(passage.read, span.size)
            before = read = before + span.size
        yield read, None
