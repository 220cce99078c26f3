"""Subwords learned from a text by the sentencepiece library, so that every text round-trips."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice

import sentencepiece

from axon_core.errors import DataError

__all__ = ["trained_pieces"]


def trained_pieces(text: str, vocab_size: int, algorithm: str) -> bytes:
    """Return a sentencepiece model of `vocab_size` pieces, trained by `bpe` or `unigram` on the lines of `text`.

    Raises:
        DataError: the text is too short for that many pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sentences(text)),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            num_threads=1,  # the same text gives the same pieces
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"sentencepiece cannot learn {vocab_size} pieces from {len(text):,} characters: choose a smaller "
            f"vocab_size or more text ({str(error).strip()})"
        ) from None
    return model.getvalue()


def _sentences(text: str) -> Iterator[str]:
    """Lines, cut to a length that sentencepiece does not skip (4,192 bytes)."""
    for line in text.splitlines():
        characters = iter(line)
        while part := "".join(islice(characters, 1000)):
            yield part
