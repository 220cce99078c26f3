"""The body of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from axon_llamachat.api_error import invalid
from axon_llamachat.wire.sampled import SampledBody

__all__ = ["CompletionBody"]


class CompletionBody(SampledBody):
    """A prompt, or several, to continue."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {**SampledBody.neutral, "suffix": ("",)}

    prompt: str | tuple[int, ...] | tuple[str, ...] | tuple[tuple[int, ...], ...]
    """A text, its tokens, or a list of texts or of tokens."""
    max_tokens: int = Field(default=16, ge=0, le=1_000_000)
    """The most tokens to generate; 0, with `echo`, scores the prompt alone."""
    echo: bool = False
    """Whether the text begins with the prompt."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Return log-probabilities, and so many of the most likely tokens at each place."""
    best_of: int | None = None
    """Not supported: it must equal `n`."""

    @field_validator("prompt", mode="plain")
    @classmethod
    def _of_one_kind(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if _are_tokens(value) or (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            return tuple(value)
        if isinstance(value, list) and value and all(map(_are_tokens, value)):
            return tuple(map(tuple, value))
        raise ValueError(
            "must be a text, tokens (numbers from 0 on), or a list of texts or of tokens; none may be empty"
        )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 unless echo is true, got 0")
        return self

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """The prompts, each a text or tokens."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return (self.prompt,)  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]

    def check_extra(self) -> Self:
        """Check the parameters that are not fields, and `best_of`. Raises `ApiError`."""
        if self.best_of is not None and self.best_of != self.n:
            message = f"best_of is not supported by this server; it must equal n ({self.n}), got {self.best_of}"
            raise invalid(message, "best_of", "unsupported_parameter")
        return super().check_extra()


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and 0 <= item < 1 << 31 for item in value)
