"""The bodies of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from axon_llamachat.wire.body import Body

__all__ = ["DetokenizeBody", "TokenizeBody"]


class TokenizeBody(Body):
    """A text to turn into tokens."""

    prompt: str
    """The text."""
    add_special_tokens: bool = True
    """Whether the tokens are those of a prompt, with `bos` before them if the model's prompts begin so."""


class DetokenizeBody(Body):
    """Tokens to turn into a text."""

    tokens: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]
    """The tokens."""

    @field_validator("tokens", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value
