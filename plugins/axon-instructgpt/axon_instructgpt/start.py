"""What training starts from: a new model, or a saved one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axon_core import MODELS, Key, at, forked, validate
from axon_core.interfaces import Model
from axon_core.registry import Spec
from axon_core.text import ByteTokenizer, Tokenizer, train_tokenizer
from axon_core.training import Saved, load_pretrained

__all__ = ["build_model", "check_model_table"]


def check_model_table(table: Mapping[str, Any]) -> None:
    """Raise `ConfigError` or `UnknownKey` if the `[model]` table of a recipe breaks a rule, whatever the folders."""
    with at("model"):
        if "init" in table:
            validate(Saved, table)
        else:
            MODELS.config(Spec.of(table), vocab_size=ByteTokenizer().vocab_size)  # which one is known with the data


def build_model(
    table: Mapping[str, Any], saved: Path | None, seed: int, tokenizer: Spec, text: str
) -> tuple[Model, Tokenizer]:
    """Return what the `[model]` table of a recipe describes, and its tokenizer.

    Args:
        table: a `Saved` model, or a new one's `type` and options.
        saved: what the same recipe exported before; it takes precedence.
        seed: what a new model's weights are drawn from.
        tokenizer: a new model's tokenizer.
        text: what that tokenizer is trained on.

    Raises:
        ConfigError: the table, or the tokenizer's, breaks a rule.
        CheckpointError: there is no intact model in the folder.
    """
    with at("model"):
        start = validate(Saved, table) if "init" in table else None
        if folder := saved or (start and start.folder):
            return load_pretrained(folder, Model)
    with at("data", "tokenizer"):
        new = train_tokenizer(tokenizer, text)
    with at("model"), forked("cpu"):
        Key((seed, "weights")).seed_global()
        return MODELS.build(Spec.of(table), vocab_size=new.vocab_size), new
