"""The parameters that completions and chat completions share: how tokens are chosen, and how they are returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from axon_core import ConfigError, Sampling, validate
from axon_llamachat.api_error import invalid
from axon_llamachat.wire.body import Body

__all__ = ["SampledBody", "StreamOptions"]

_COMMON_IGNORED = (
    *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "service_tier"),
    *("parallel_tool_calls",),  # there are no tools
)

_StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream has besides its pieces."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False
    """Whether the last event counts tokens."""
    include_obfuscation: bool = False
    """Whether events are padded against observers of their length; not supported."""

    @field_validator("include_obfuscation")
    @classmethod
    def _plain(cls, value: bool) -> bool:
        if value:
            raise ValueError("padding of events is not supported; leave it out")
        return value


class SampledBody(Body):
    """What both kinds of completion may ask for; `top_k`, `min_p` and `repetition_penalty` are Axon's own.

    A field of `Sampling` that a request leaves out has the value that the model was published with, if it has one.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(_COMMON_IGNORED)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "store": (False,),
    }

    n: int = Field(default=1, ge=1, le=128)
    """How many texts for each prompt."""
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    """Equal seeds give equal texts, whatever runs beside them; by default it is drawn."""
    stop: tuple[_StopString, ...] = Field(default=(), max_length=64)
    """A text ends before the first of these strings; one string or a list."""
    stream: bool = False
    """Whether the texts come in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream has besides."""
    temperature: float = 1.0
    """0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample only from the most likely tokens with this total probability."""
    top_k: int | None = None
    """Sample only from the k most likely tokens; 0 is from all."""
    min_p: float = 0.0
    """Leave out tokens less than `min_p` times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens already used become less likely."""

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream = true")
        return self

    def sampling(self, published: Mapping[str, Any]) -> Sampling:
        """Return how tokens are chosen, with the `published` settings of the model where the request does not say.

        Raises:
            ApiError: a parameter breaks a rule.
        """
        asked = {name: getattr(self, name) for name in Sampling.model_fields if name in self.model_fields_set}
        if asked.get("top_k") == 0:
            asked["top_k"] = None
        try:
            return validate(Sampling, {**published, **asked})
        except ConfigError as error:
            path, message = error.problems[0]
            raise invalid(f"{'.'.join(path)}: {message}", ".".join(path)) from None

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage
