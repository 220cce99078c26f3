"""Byte, character and sentencepiece tokenizers behind one small interface.

A tokenizer is a table of pieces: piece i is the bytes that token i stands for. So decoding and streaming are the same
for all of them: join the bytes and read them as UTF-8.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import sentencepiece
from pydantic import Field

from axon_core import config
from axon_core.checkpoint.atomic import atomic_file, write_text
from axon_core.checkpoint.manifest import add_to_manifest, claimed_files, read_checked
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError, DataError
from axon_core.json_text import to_json
from axon_core.registry.spec import Spec
from axon_core.text.pieces import trained_pieces

__all__ = [
    "PAD",
    "ByteTokenizer",
    "CharTokenizer",
    "DecodeStream",
    "SentencePieceTokenizer",
    "Tokenizer",
    "tokenizer_types",
    "train_tokenizer",
]

PAD = -1
"""The id that fills up short rows. It is not a token: it decodes to nothing and must never reach an embedding."""

_FILE, _MODEL = "tokenizer.json", "tokenizer.model"
_OTHERS = [("axon_core.text.pipeline_tokenizer", "PipelineTokenizer")]
"""Tokenizers of other modules."""


class Tokenizer(ABC):
    """Turns text into token ids and back: `decode(encode(text)) == text`, unless the encoder normalises the text.

    `bos` and `eos` are the ids that mark a text's beginning and end, or None if there are none. They are ids only: no
    text encodes to them, and they decode to nothing.
    """

    class Config(config.Config):
        """What may be chosen when the tokenizer is trained."""

    type: ClassVar[str]
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    """Whether `bos` comes before a prompt, as a model expects whose training texts all began with it."""
    other_ends: frozenset[int] = frozenset()
    """Ids besides `eos` that the model was trained to end a text with."""
    drops_spaces: int = 0
    """How many of a text's first pieces may begin with the encoder's own space; the first with text is the last."""
    spaced: frozenset[int] = frozenset()
    """The tokens whose first space may be the encoder's."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    @classmethod
    @abstractmethod
    def train(cls, text: str, config: Any) -> Self:
        """Build the tokenizer from a text; `config` is the class's `Config`."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _state(self, folder: Path) -> dict[str, Any]:
        """Return what `_restore` needs, as JSON; larger data go into files of `folder`."""

    @classmethod
    @abstractmethod
    def _restore(cls, state: Mapping[str, Any], folder: Path) -> Self: ...

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end a generated text: `eos` and `other_ends`."""
        return self.other_ends if self.eos is None else self.other_ends | {self.eos}

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids run from 0 to one less."""
        return len(self._pieces)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of `text`, between `bos` and `eos` if they are asked for.

        Raises:
            DataError: the text cannot be encoded, or the tokenizer has no such marker.
        """
        try:
            ids = self._encode(text)
        except UnicodeEncodeError as error:
            raise DataError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}, at position {error.start}), which "
                "is not a character; was the text read with the wrong encoding?"
            ) from None
        for wanted, name, token, place in ((bos, "bos", self.bos, 0), (eos, "eos", self.eos, len(ids) + bos)):
            if wanted:
                if token is None:
                    raise DataError(f"a {self.type} tokenizer has no {name} token; encode without it")
                ids.insert(place, token)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that a model is to continue: after `bos` if `add_bos` says so."""
        return self.encode(text, bos=self.add_bos)

    def decode(self, ids: Iterable[int], *, after: Iterable[int] = ()) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD, and padding disappears.

        With `after`, the tokens of a prompt, it is the text that `ids` add to the prompt's. Only there is a first
        space the completion's own: `encode_completion` is the inverse.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        stream = DecodeStream(self, after)
        return stream.push(*ids) + stream.finish()

    def piece(self, token: int) -> bytes:
        """Return the bytes that one token stands for. Raises `DataError` if it is not in the vocabulary."""
        if token == PAD:
            return b""
        if not 0 <= token < len(self._pieces):
            raise DataError(f"token ids run from 0 to {len(self._pieces) - 1} for this tokenizer, got {token}")
        return self._pieces[token]

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, and the files it names, into `folder`; a killed process's leftovers are removed.

        Raises:
            CheckpointError: they cannot be written.
            UsageError: another process saves into the folder; the message names that process.
        """
        folder = Path(folder)
        with claimed_files(folder, _FILE, _MODEL):
            state = {"type": self.type, **self._state(folder)}
            write_text(folder / _FILE, to_json(state, ensure_ascii=False))
            add_to_manifest(folder, _FILE)

    @staticmethod
    def load(folder: Path | str) -> Tokenizer:
        """Read the tokenizer that `save` wrote.

        Raises:
            CheckpointError: the files are missing, damaged, or of a kind that is not known.
        """
        file = Path(folder) / _FILE
        try:
            state = parse_json(read_checked(file).decode("utf-8-sig"))
            return tokenizer_types()[state["type"]]._restore(state, file.parent)  # pyright: ignore[reportPrivateUsage]
        except FileNotFoundError as error:
            raise CheckpointError(f"no tokenizer in {folder}: {error.filename} is missing") from None
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise CheckpointError(f"the tokenizer file {file} is damaged or of an unknown kind ({error!r})") from error


class DecodeStream:
    """Decodes token by token: the pieces of text, joined, equal the decoding of all ids at once.

    A character whose bytes are spread over several tokens appears with the last of them.

    >>> stream = DecodeStream(ByteTokenizer())
    >>> [stream.push(id) for id in "é!".encode()], stream.finish()
    (['', 'é', '!'], '')

    Args:
        tokenizer: what made the ids.
        after: the tokens of a prompt, whose text is left out.

    Raises:
        DataError: an id is not in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces = tokenizer.drops_spaces
        self.push(*after)

    def push(self, *tokens: int) -> str:
        """Return the text that `tokens` complete."""
        return self._decoder.decode(b"".join([self._piece(token) for token in tokens]))

    def finish(self) -> str:
        """Return what is left: a character that was cut off becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)

    def _piece(self, token: int) -> bytes:
        """Return the bytes of a token, without the encoder's own space at the beginning of the text."""
        piece = self._tokenizer.piece(token)
        if self._spaces and piece:
            own = token in self._tokenizer.spaced
            piece = piece[own:]
            self._spaces = 0 if piece else self._spaces - own
        return piece


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then `bos` and `eos`: encodes every text, needs no training."""

    type = "byte"
    bos = 256
    eos = 257

    def __init__(self) -> None:
        super().__init__([bytes([byte]) for byte in range(256)] + [b"", b""])

    @classmethod
    def train(cls, text: str, config: Tokenizer.Config) -> Self:
        """Return the tokenizer; there is nothing to learn from `text`."""
        return cls()

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _state(self, folder: Path) -> dict[str, Any]:
        return {}

    @classmethod
    def _restore(cls, state: Mapping[str, Any], folder: Path) -> Self:
        return cls()


class CharTokenizer(Tokenizer):
    """The characters of the text it was trained on, in code point order; no others can be encoded.

    Raises:
        ValueError: a character occurs twice.
    """

    type = "char"

    def __init__(self, characters: str) -> None:
        if len(set(characters)) != len(characters):
            raise ValueError("every character must occur exactly once")
        super().__init__([character.encode() for character in characters])
        self._ids = {character: token for token, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str, config: Tokenizer.Config) -> Self:
        """Collect the characters of `text`."""
        return cls("".join(sorted(set(text))))

    def _encode(self, text: str) -> list[int]:
        ids = self._ids
        try:
            return [ids[character] for character in text]
        except KeyError as error:
            character: str = error.args[0]
            raise DataError(
                f"character {character!r} (U+{ord(character):04X}, at position {text.index(character)}) is not among "
                f"the {len(ids)} of this tokenizer; leave it out, or train with the tokenizer type "
                "'byte', which encodes every text"
            ) from None

    def _state(self, folder: Path) -> dict[str, Any]:
        return {"characters": "".join(self._ids)}

    @classmethod
    def _restore(cls, state: Mapping[str, Any], folder: Path) -> Self:
        if not isinstance(characters := state["characters"], str):
            raise ValueError(f"characters must be one string, got {characters!r:.60}")
        return cls(characters)


class SentencePieceTokenizer(Tokenizer):
    """Subwords by the sentencepiece library (1808.06226): an existing model file, or one trained on the text.

    Ids decode to what the library makes of them. Bytes that are not UTF-8 are the exception: the library writes U+FFFD
    for each of them, a `DecodeStream` for each character that is broken, and one that a marker divides is whole.
    A model trained here, with `path` left out, decodes the ids of every text without `▁` and NUL to that text; one from
    a file may normalise a text first, and does not.
    Ids of `other_ends` beyond the vocabulary are left out.

    Raises:
        ValueError: the model is empty, or prompts are to begin with the marker `bos` and it has none.
    """

    class Config(Tokenizer.Config):
        """Options of sentencepiece's trainer; the rest are chosen so that every text round-trips."""

        path: Path | None = None
        """An existing `.model` file to use instead of training one."""
        vocab_size: int = Field(1000, gt=300)
        """Number of pieces to train, of which 256 are the bytes and 4 the markers and the newline."""
        algorithm: str = Field("bpe", pattern="^(bpe|unigram)$")
        """How pieces are chosen: `bpe` or `unigram`."""
        add_bos: bool = False
        """Whether a prompt begins with the marker `bos`; for a model that was trained that way."""

    type = "sentencepiece"

    def __init__(self, model: bytes, *, add_bos: bool = False, other_ends: Iterable[int] = ()) -> None:
        if not model:
            raise ValueError("it is empty")  # the library would make an unusable processor of it
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.model = model
        super().__init__([self._bytes_of(token) for token in range(processor.get_piece_size())])
        self.bos = self._marker(processor.bos_id())
        self.eos = self._marker(processor.eos_id())
        self.other_ends = frozenset(other_ends) & {*range(self.vocab_size)} - {self.eos}
        if add_bos and self.bos is None:
            raise ValueError("add_bos needs a sentencepiece model with a bos marker, but this one has none")
        self.add_bos = add_bos
        # The encoder may put a space before the text, and may have dropped all leading ones; its own decoder knows
        # which, and is asked once.
        kept = processor.decode_pieces(["▁"] * 64 + ["a"]).count(" ")
        self.drops_spaces = (1 << 62) if kept == 0 else 64 - kept
        pieces = [token for token in range(self.vocab_size) if processor.id_to_piece(token).startswith("▁")]
        self.spaced = frozenset(token for token in pieces if not processor.is_unknown(token))

    @classmethod
    def train(cls, text: str, config: Config) -> Self:
        """Train on the lines of `text`, or read the model at `config.path`.

        Raises:
            ConfigError: the model file cannot be read.
            DataError: the text is too short for that many pieces.
        """
        if config.path is not None:
            try:
                return cls(config.path.expanduser().read_bytes(), add_bos=config.add_bos)
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    [(("path",), f"must be a sentencepiece model, got {config.path} ({error})")]
                ) from None
        model = trained_pieces(text, config.vocab_size, config.algorithm)
        return cls(model, add_bos=config.add_bos)

    def _bytes_of(self, token: int) -> bytes:
        processor = self._processor
        piece: str = processor.id_to_piece(token)
        if processor.is_control(token):
            return b""
        if processor.is_unknown(token):
            return cast(str, processor.decode([token])).encode()  # " ⁇ ", or what the model says instead
        if processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])  # "<0x0A>"
        return piece.replace("▁", " ").encode()

    @staticmethod
    def _marker(token: int) -> int | None:
        return token if token >= 0 else None

    def _encode(self, text: str) -> list[int]:
        return cast(list[int], self._processor.encode(text.encode()))  # given a lone surrogate, the library fails

    def _state(self, folder: Path) -> dict[str, Any]:
        with atomic_file(folder / _MODEL) as draft:
            draft.write_bytes(self.model)
        add_to_manifest(folder, _MODEL)
        return {"add_bos": self.add_bos, "other_ends": sorted(self.other_ends)}

    @classmethod
    def _restore(cls, state: Mapping[str, Any], folder: Path) -> Self:
        model, ends = read_checked(folder / _MODEL), state.get("other_ends", [])
        return cls(model, add_bos=state.get("add_bos") is True, other_ends=ends)


def tokenizer_types() -> Mapping[str, type[Tokenizer]]:
    """Return the tokenizers by type; the module of one that is built on this is imported here."""
    others = [getattr(import_module(module), name) for module, name in _OTHERS]
    return {kind.type: kind for kind in (ByteTokenizer, CharTokenizer, SentencePieceTokenizer, *others)}


def train_tokenizer(spec: Spec | str | Mapping[str, Any], text: str) -> Tokenizer:
    """Build the tokenizer that `spec` asks for, for instance `{"type": "sentencepiece", "vocab_size": 500}`.

    Raises:
        ConfigError: there is no such type, or an option breaks a rule.
        DataError: the text does not suit it.
    """
    spec = Spec.of(spec)
    types = tokenizer_types()
    if spec.type not in types:
        raise ConfigError([(("type",), f"must be one of {', '.join(types)}, got {spec.type!r}")])
    return (kind := types[spec.type]).train(text, validate(kind.Config, spec.options))
