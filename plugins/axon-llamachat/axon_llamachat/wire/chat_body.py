"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from axon_core.text import Message
from axon_llamachat.wire.sampled import SampledBody

__all__ = ["ChatBody", "ChatTurn"]


class _TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text"]
    text: str


class ChatTurn(BaseModel):
    """One message. Fields that the answers of this server have besides role and content must be empty."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; `developer` is another word for `system`."""
    content: str | tuple[_TextPart, ...]
    """What is said: a text, or a list of parts of type `text`."""

    @field_validator("content", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _nothing_else(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}, ""):
                raise ValueError(f"{name} is not supported in a message; leave it out")
        return self

    @property
    def message(self) -> Message:
        """The message as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatBody(SampledBody):
    """A conversation to continue."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SampledBody.neutral,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[tuple[ChatTurn, ...], Field(min_length=1)]
    """What has been said; the last message is the user's."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """The most tokens to generate; by default as many as the context holds."""
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """The former name of `max_completion_tokens`."""
    logprobs: bool = False
    """Return log-probabilities."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """With `logprobs`, return so many of the most likely tokens at each place."""

    @field_validator("messages", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs = true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("give either max_completion_tokens or max_tokens, which is its former name")
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to generate, or None for as many as the context holds."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
