"""What the bodies of all requests have in common, and what happens to parameters that the server does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from axon_core import ConfigError, validate
from axon_llamachat.api_error import invalid

__all__ = ["Body", "parse_body"]

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A request's JSON object.

    A parameter that the class does not name is an error, unless it cannot change the result: it is null, is among
    `ignored`, or has a value that `neutral` lists.

    Attributes:
        ignored: parameters that never change the result.
        neutral: parameters that are not supported, each with the values that change nothing.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())
    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    model: str | None = None
    """The name of the model; it may be left out if there is only one."""

    def check_extra(self) -> Self:
        """Return the body itself. Raises `ApiError` if it has a parameter that would change the result."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in self.ignored or value in self.neutral.get(name, ()):
                continue
            if name in self.neutral:
                only = ", ".join(repr(item) for item in self.neutral[name])
                rule = f"only its neutral value ({only}) is accepted" if only else "leave it out"
                raise invalid(f"{name} is not supported by this server; {rule}", name, "unsupported_parameter")
            raise invalid(f"{name} is not a parameter of this endpoint; leave it out", name, "unknown_parameter")
        return self


def parse_body(kind: type[B], values: Mapping[str, Any]) -> B:
    """Return the body of this kind. Raises `ApiError` if a parameter breaks a rule or is not supported."""
    present = {name: value for name, value in values.items() if value is not None or name not in kind.model_fields}
    try:
        return validate(kind, present).check_extra()
    except ConfigError as error:
        path, message = cast("tuple[tuple[str, ...], str]", error.problems[0])
        param = ".".join(path) or None
        raise invalid(f"{param}: {message}" if param else message, param) from None
