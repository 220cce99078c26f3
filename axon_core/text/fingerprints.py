"""Checksums of tokenizers: whether two of them encode alike."""

from __future__ import annotations

from hashlib import sha256

from axon_core.text.tokenizer import SentencePieceTokenizer, Tokenizer

__all__ = ["tokenizer_fingerprint"]


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of what determines the ids of a text and what they mean; equal ones encode alike."""
    total = sha256()
    rules = tokenizer.model if isinstance(tokenizer, SentencePieceTokenizer) else b""
    pieces = (tokenizer.piece(token) for token in range(tokenizer.vocab_size))
    for part in (tokenizer.type.encode(), repr((tokenizer.bos, tokenizer.eos)).encode(), rules, *pieces):
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()
