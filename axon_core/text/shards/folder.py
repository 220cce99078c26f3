"""A folder of token shards: its index, the tokenizer beside it, and what has been done of one that is unfinished."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from axon_core.checkpoint.atomic import write_text
from axon_core.checkpoint.manifest import add_to_manifest, read_checked
from axon_core.config import Config, validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError, DataError
from axon_core.json_text import to_json
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards.files import Shard, ShardFacts
from axon_core.text.tokenizer import Tokenizer

__all__ = ["INDEX", "IndexedShard", "ShardFolder", "ShardIndex", "inputs_checksum", "token_shard_name", "write_index"]

INDEX = "index.json"
"""The name of the file that is written last."""
_NAME = r"^[0-9]{5,9}-[0-9]{4,9}\.safetensors$"


class IndexedShard(Config):
    """A shard, as the index names it."""

    name: str = Field(pattern=_NAME)
    """Its file in the folder."""
    tokens: NonNegativeInt
    """Number of tokens."""
    documents: NonNegativeInt
    """Number of documents that end in it."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """The checksum in its header, which is that of all that follows the header."""


class ShardIndex(Config):
    """What a complete folder of shards holds."""

    format: Literal["axon token shards"] = "axon token shards"
    """What the file is."""
    version: Literal[1] = 1
    """The version of the format."""
    tokenizer: str = Field(pattern="^[0-9a-f]{64}$")
    """The fingerprint of the tokenizer, which is saved in the same folder."""
    vocab_size: PositiveInt
    """The number of its tokens."""
    dtype: Literal["uint16", "uint32"]
    """The type of the ids."""
    inputs: str = Field(pattern="^[0-9a-f]{64}$")
    """A checksum of what was asked for: the files by name and size, and the options."""
    tokens: PositiveInt
    """Number of tokens."""
    documents: NonNegativeInt
    """Number of documents."""
    text_bytes: NonNegativeInt
    """Bytes of UTF-8 text that became tokens."""
    left_out: NonNegativeInt
    """Lines or rows that were no documents, and were left out."""
    shards: tuple[IndexedShard, ...]
    """The shards, in the order of the text."""


class ShardFolder:
    """A complete folder of shards.

    Its index and the header of each shard have been read, and all sizes compared. `verify` compares the checksums.

    Attributes:
        path: the folder.
        index: what it holds.

    Raises:
        DataError: it is not one, is unfinished, or a file is missing, truncated, of another tokenizer or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = _read_index(path)
        for number in range(len(self.index.shards)):
            self.open(number).close()

    def open(self, number: int) -> Shard:
        """Return the shard of this number, open. Raises `DataError` if it is not as the index says."""
        shard = self.index.shards[number]
        found = Shard(self.path / shard.name)
        facts = found.facts
        if facts.tokenizer != self.index.tokenizer or found.dtype.__name__ != self.index.dtype:
            raise DataError(f"the shard {found.path} was made with another tokenizer than its folder; restore it")
        if (facts.tokens, facts.documents, facts.sha256) != (shard.tokens, shard.documents, shard.sha256):
            raise DataError(
                f"the shard {found.path} is not the one that {INDEX} names: it has {facts.tokens:,} tokens, and not "
                f"{shard.tokens:,}, or other ones; restore it"
            )
        return found

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that made the shards. Raises `DataError` if it is damaged, missing or another one."""
        try:
            found = Tokenizer.load(self.path)
        except CheckpointError as error:
            raise DataError(f"{error}; restore the tokenizer of the shards") from None
        if tokenizer_fingerprint(found) != self.index.tokenizer:
            raise DataError(f"the tokenizer in {self.path} is not the one that made the shards; restore it")
        return found

    def verify(self) -> None:
        """Read every shard, and compare it with its checksum. Raises `DataError` if one is damaged."""
        for number in range(len(self.index.shards)):
            self.open(number).verify()


def token_shard_name(unit: int, part: int) -> str:
    """Return the file of a shard: its unit of work, and its number among the shards of the unit."""
    return f"{unit:05}-{part:04}.safetensors"


def write_index(folder: Path, tokenizer: Tokenizer, inputs: str, shards: dict[str, ShardFacts], dtype: str) -> None:
    """Write the index, which makes a folder complete. Raises `CheckpointError` if it cannot be written."""
    index = ShardIndex(
        tokenizer=tokenizer_fingerprint(tokenizer),
        vocab_size=tokenizer.vocab_size,
        dtype="uint16" if dtype == "uint16" else "uint32",
        inputs=inputs,
        shards=tuple(
            IndexedShard(name=name, tokens=facts.tokens, documents=facts.documents, sha256=facts.sha256)
            for name, facts in shards.items()
        ),
        tokens=sum(facts.tokens for facts in shards.values()),
        documents=sum(facts.documents for facts in shards.values()),
        text_bytes=sum(facts.text_bytes for facts in shards.values()),
        left_out=sum(facts.left_out for facts in shards.values()),
    )
    write_text(folder / INDEX, to_json(index.model_dump(mode="json"), indent=1))
    add_to_manifest(folder, INDEX)


def _read_index(path: Path) -> ShardIndex:
    place = path / INDEX
    if not path.exists():
        raise DataError(f"no such folder: {path} (current folder: {Path.cwd()})")
    if not place.exists():
        raise DataError(
            f"{path} is not a complete folder of token shards: it has no {INDEX}; make one with axon tokenize, or run "
            "the same command again if it was interrupted"
        )
    try:
        index = validate(ShardIndex, parse_json(read_checked(place).decode("utf-8-sig")))
        _check_totals(index)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    except (ValueError, OSError, ConfigError) as error:
        raise DataError(f"{place} is damaged, or of another version ({error}); restore it") from None
    return index


def _check_totals(index: ShardIndex) -> None:
    if len({shard.name for shard in index.shards}) != len(index.shards):
        raise ValueError("it names a shard twice")
    for name in ("tokens", "documents"):
        if sum(getattr(shard, name) for shard in index.shards) != getattr(index, name):
            raise ValueError(f"its {name} do not add up")


def inputs_checksum(values: Any) -> str:
    """Return the SHA-256 of values that JSON can express."""
    return hashlib.sha256(to_json(values, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
