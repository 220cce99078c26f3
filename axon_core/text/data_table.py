"""The `[data]` table of a recipe for a language model: its `type` says what the data are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axon_core.config import validate
from axon_core.errors import ConfigError
from axon_core.text.corpus import TextConfig, TextData
from axon_core.text.language_data import LanguageData
from axon_core.text.shards.data import TokenData, TokensConfig
from axon_core.text.tokenizer import Tokenizer

__all__ = ["load_language_data"]


def load_language_data(table: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> LanguageData:
    """Return the data that a table describes: a `TextConfig`, or a `TokensConfig` if its `type` is `tokens`.

    Args:
        table: the table.
        tokenizer: the model's, if it has one already.

    Raises:
        ConfigError: the table breaks a rule.
        DataError: the data cannot be used, or token shards were made with another tokenizer.
    """
    match table.get("type", "text"):
        case "text":
            return TextData.load(validate(TextConfig, table), tokenizer)
        case "tokens":
            return TokenData.load(validate(TokensConfig, table), tokenizer)
        case other:
            raise ConfigError([(("type",), f"must be text or tokens, got {other!r}")])
