"""The tokenizer that is asked for: a saved one, one without training, or one trained on a sample of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from axon_core.config import at, validate
from axon_core.documents import parse_toml
from axon_core.errors import ConfigError, UsageError
from axon_core.registry.spec import Spec
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards.inputs import Span
from axon_core.text.shards.passages import passages
from axon_core.text.shards.tokenizing import TokenizerChoice
from axon_core.text.tokenizer import Tokenizer, tokenizer_types, train_tokenizer

__all__ = ["chosen_tokenizer", "saved_tokenizer", "text_sample"]

SAMPLE = 10_000_000
"""About how many characters of text a tokenizer is trained on."""


def saved_tokenizer(folder: Path) -> TokenizerChoice:
    """Return the tokenizer that is saved in a folder. Raises `CheckpointError` if it is damaged or missing."""
    tokenizer = Tokenizer.load(folder)

    def make(units: Sequence[Sequence[Span]]) -> Tokenizer:
        return tokenizer

    return TokenizerChoice(tokenizer_fingerprint(tokenizer), make)


def chosen_tokenizer(text: str, field: str) -> TokenizerChoice:
    """Return the tokenizer that a word such as `byte`, a table in TOML or a sentencepiece model names.

    Raises:
        ConfigError: an option breaks a rule.
        UsageError: it is none of these.
    """
    spec, types = _spec(text), tokenizer_types()
    if spec.type not in types:
        raise UsageError(
            f"--tokenizer must be a folder with a saved model or tokenizer, a sentencepiece .model file, a type "
            f"({', '.join(types)}) or a table such as \"{{type='sentencepiece', vocab_size=8000}}\", got {text!r}"
        )
    with at("--tokenizer"):
        validate(types[spec.type].Config, spec.options)
    ready = spec.type == "byte" or "path" in spec.options

    def make(units: Sequence[Sequence[Span]]) -> Tokenizer:
        with at("--tokenizer"):
            return train_tokenizer(spec, "" if ready else text_sample(units, field))

    return TokenizerChoice(spec.model_dump_json(), make)


def text_sample(units: Sequence[Sequence[Span]], field: str, most: int = SAMPLE) -> str:
    """Return the beginnings of spread units of work, together about `most` characters; what is no document is left out.

    Raises:
        DataError: a file cannot be read.
    """
    chosen = [units[i * len(units) // min(len(units), 64)] for i in range(min(len(units), 64))]
    texts: list[str] = []
    for unit in chosen:
        held = 0
        for passage in (passage for span in unit for passage in passages(span, field)):
            if held >= most // len(chosen):
                break
            texts.append(passage.text)
            held += len(passage.text)
    return "\n".join(texts)


def _spec(text: str) -> Spec:
    if text.endswith(".model"):
        return Spec.of({"type": "sentencepiece", "path": text})
    if not text.startswith("{"):
        return Spec(type=text)
    try:
        return Spec.of(parse_toml(f"value = {text}")["value"])
    except ValueError as error:
        raise ConfigError([(("--tokenizer",), f"is not a table in TOML: {error}")]) from None
