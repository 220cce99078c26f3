"""The tokenizer that the keys of a GGUF file describe, with llama.cpp's defaults for those that are missing."""

from __future__ import annotations

from typing import TypeVar

from axon_core import CheckpointError
from axon_core.text import PieceKind
from axon_xllama.gguf.keys import Keys
from axon_xllama.gguf.vocabulary import GGUFVocabulary

__all__ = ["vocabulary_from"]

_Entry = TypeVar("_Entry")
_GGML = "tokenizer.ggml"
_OTHERS = {"t5": "a unigram model of sentencepiece", "bert": "WordPiece", "rwkv": "RWKV's", "plamo2": "PLaMo's"}
"""Tokenizers of llama.cpp that cannot be read."""


def vocabulary_from(keys: Keys) -> GGUFVocabulary:
    """Return the tokenizer's description.

    Raises:
        CheckpointError: it is incomplete or malformed, or of a kind that is not known.
    """
    model = keys.text(f"{_GGML}.model")
    if model not in ("llama", "gpt2"):
        what = f", {_OTHERS[model]}" if model in _OTHERS else ""
        raise CheckpointError(
            f"{_GGML}.model must be 'llama' (BPE of sentencepiece) or 'gpt2' (byte-level BPE), got {model!r:.60}{what}"
        )
    tokens = _entries(keys, "tokens", keys.texts(f"{_GGML}.tokens"))
    if len(set(tokens)) < len(tokens):
        raise CheckpointError(f"{_GGML}.tokens must be different texts, but one is there twice")
    kinds = keys.counts(f"{_GGML}.token_type") or [int(PieceKind.NORMAL)] * len(tokens)
    _check_length("token_type", len(kinds), len(tokens))
    found = GGUFVocabulary(model, tokens, kinds, chat_template=keys.text("tokenizer.chat_template") or "")
    if model == "gpt2":
        found.merges = _entries(keys, "merges", keys.texts(f"{_GGML}.merges"))
        found.splitter = keys.text(f"{_GGML}.pre") or "default"
    else:
        found.scores = _entries(keys, "scores", keys.numbers(f"{_GGML}.scores"))
        _check_length("scores", len(found.scores), len(tokens))
        found.add_space = keys.flag(f"{_GGML}.add_space_prefix") is not False
    _add_markers(found, keys)
    return found


def _add_markers(found: GGUFVocabulary, keys: Keys) -> None:
    """Add the ids that begin and end a text."""
    found.bos, found.eos, found.unknown, *others = (
        keys.count(f"{_GGML}.{name}_token_id", least=0, most=len(found.tokens) - 1)
        for name in ("bos", "eos", "unknown", "eot", "eom")
    )
    found.ends = frozenset(token for token in others if token is not None)
    markers = {token for token, kind in enumerate(found.kinds) if kind == PieceKind.CONTROL}
    if found.model == "llama":
        found.bos = 1 if found.bos is None and 1 in markers else found.bos
        found.eos = 2 if found.eos is None and 2 in markers else found.eos
    added = keys.flag(f"{_GGML}.add_bos_token")
    found.add_bos = (found.model == "llama" or found.splitter == "llama-bpe") if added is None else added
    if found.add_bos and found.bos is None:
        raise CheckpointError(f"{_GGML}.bos_token_id is missing, but a text begins with it; convert the model again")


def _entries(keys: Keys, name: str, values: list[_Entry] | None) -> list[_Entry]:
    """Return a list that must not be empty."""
    return keys.needed(f"{_GGML}.{name}", values or None)


def _check_length(name: str, length: int, tokens: int) -> None:
    if length != tokens:
        raise CheckpointError(f"{_GGML}.{name} must have one entry for each of the {tokens:,} tokens, got {length:,}")
