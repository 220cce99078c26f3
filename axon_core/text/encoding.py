"""Texts as arrays of token ids: what `Tokenizer.encode` gives, many times as fast, and in passages of any length."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from axon_core.text.sentencepiece_model import PieceKind, SentencePieceModel
from axon_core.text.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer

__all__ = ["EncodePassage", "IdType", "TokenArray", "array_encoder", "token_dtype"]

IdType = type[np.uint16] | type[np.uint32]
TokenArray = NDArray[np.uint16 | np.uint32]
EncodePassage = Callable[[str, bool], TokenArray]
"""Takes a passage, and whether a document begins with it; if not, it follows a passage that ends with a newline."""

_NEWLINE, _SPACE = "\n", "▁"
_WORD = re.compile(r"\n|[ ▁]*[^ ▁\n]+|[ ▁]+")
"""A newline, or a word with the spaces before it: `▁` is what sentencepiece replaces a space by."""
_WORDS, _LETTERS = 1 << 16, 32
"""How many words' ids are kept at a time, and how long such a word is at most."""


def token_dtype(vocab_size: int) -> IdType:
    """Return the smaller of the two types of ids that holds those from 0 to `vocab_size` − 1."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def array_encoder(tokenizer: Tokenizer) -> EncodePassage:
    """Return a function from the passages of a document to their ids, in the type `token_dtype`.

    Joined, these are the ids of the whole document, whatever its passages are, for every tokenizer that Axon trains. A
    sentencepiece model from elsewhere may rewrite texts, or have tokens that span lines; then each passage has the ids
    that it has by itself.

    The function raises `DataError` if a text cannot be encoded.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    match tokenizer:
        case ByteTokenizer():
            encode = partial(_bytes, dtype)
        case CharTokenizer():
            encode = _by_code_point(tokenizer, dtype)
        case SentencePieceTokenizer():
            encode = _by_piece(tokenizer, dtype)
        case _:
            encode = partial(_plainly, tokenizer, dtype)

    def checked(text: str, first: bool) -> TokenArray:
        try:
            return encode(text, first)
        except UnicodeEncodeError:
            return _plainly(tokenizer, dtype, text, first)  # raises, and says where the wrong character is

    return checked


def _plainly(tokenizer: Tokenizer, dtype: IdType, text: str, first: bool) -> TokenArray:
    return np.array(tokenizer.encode(text), dtype)


def _bytes(dtype: IdType, text: str, first: bool) -> TokenArray:
    return np.frombuffer(text.encode(), np.uint8).astype(dtype)


def _by_code_point(tokenizer: CharTokenizer, dtype: IdType) -> EncodePassage:
    characters = [tokenizer.piece(token).decode() for token in range(tokenizer.vocab_size)]
    ids = np.full(max(map(ord, characters)) + 2, len(characters), np.uint32)  # the last one stands for all beyond
    ids[[ord(character) for character in characters]] = range(len(characters))

    def encode(text: str, first: bool) -> TokenArray:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found = ids[np.minimum(points, len(ids) - 1)]
        if (found == len(characters)).any():
            return _plainly(tokenizer, dtype, text, first)  # raises, and says which character it is
        return found.astype(dtype)

    return encode


def _by_piece(tokenizer: SentencePieceTokenizer, dtype: IdType) -> EncodePassage:
    """EncodePassage word by word if no piece of the model spans two of them, else as the library does."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    model = SentencePieceModel.read(tokenizer.model)
    before: list[int] = processor.encode(_NEWLINE)  # the library may put a space before a text: then before this
    if not _keeps_lines_apart(model):
        return lambda text, first: np.array(processor.encode(text.encode()), dtype)

    def inside(text: str) -> list[int]:
        """Return the ids of a text that follows a newline."""
        return processor.encode(f"{_NEWLINE}{text}".encode())[len(before) :]

    if not _keeps_words_apart(model):
        return lambda text, first: np.array(processor.encode(text.encode()) if first else inside(text), dtype)
    ids_of = _Words(lambda word: np.array(inside(word), dtype).tobytes()).__getitem__
    start = " " if model.adds_space else ""

    def encode(text: str, first: bool) -> TokenArray:
        words = _WORD.findall(start + text if first and text else text)
        return np.frombuffer(b"".join(map(ids_of, words)), dtype)

    return encode


class _Words(dict[str, bytes]):
    """The ids of words, as the bytes of an array; most words of a text have occurred before.

    Args:
        ids_of: returns those of a new word.
    """

    def __init__(self, ids_of: Callable[[str], bytes]) -> None:
        super().__init__()
        self._ids_of = ids_of

    def __missing__(self, word: str) -> bytes:
        ids = self._ids_of(word)
        if len(word) <= _LETTERS:
            if len(self) >= _WORDS:
                self.clear()
            self[word] = ids
        return ids


def _keeps_lines_apart(model: SentencePieceModel) -> bool:
    """Whether texts are left as they are, and a newline stands alone: no piece but its own has one."""
    unchanged = not model.rule and not model.merges_spaces and model.marks_spaces and not model.suffix
    return unchanged and not any(_NEWLINE in piece.text and piece.text != _NEWLINE for piece in model.pieces)


def _keeps_words_apart(model: SentencePieceModel) -> bool:
    """Whether the pieces of a word with the spaces before it do not depend on what is around it.

    Byte pairs are joined by their own scores alone, and no pair spans two words if the union is no piece. Sums of
    scores, as of a unigram model, would be rounded otherwise in a longer text. Neighbouring characters that are in no
    piece become one token, unless they have bytes.
    """
    spanning = re.compile(rf"[^{_SPACE}]{_SPACE}")
    return (
        model.algorithm == "bpe"
        and any(piece.kind == PieceKind.BYTE for piece in model.pieces)
        and not any(spanning.search(piece.text) for piece in model.pieces)
    )
