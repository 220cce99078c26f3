"""BLEU by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics.bleu import BLEU


class Score(NamedTuple):
    """A corpus's BLEU, and how it was computed."""

    score: float
    """From 0 to 100."""
    signature: str
    """sacrebleu's signature (arXiv 1804.08771): scores are comparable where it is the same."""


def bleu(translations: Sequence[str], references: Sequence[str]) -> Score:
    """Return the BLEU of whole texts against raw references: cased, tokenized by sacrebleu's 13a."""
    metric = BLEU()
    result = metric.corpus_score(list(translations), [list(references)])
    return Score(result.score, str(metric.get_signature()))
