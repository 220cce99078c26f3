"""Errors as OpenAI's API tells them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from axon_core import AxonError, CheckpointError, ConfigError, ContextError, DataError, UsageError
from axon_eet import EngineClosed, ModelFailed, QueueFull

__all__ = ["ApiError", "as_api_error", "invalid"]

_log = logging.getLogger("axon")

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ONCE = {"x-should-retry": "false"}


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: the HTTP status. Clients repeat 408, 409, 429 and 500 or more by themselves.
        message: the rule, the value and the remedy.
        param: the parameter of the request that is wrong.
        code: a word for programs, such as `model_not_found`.
        headers: more headers of the response, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that says it."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself, which no client repeats."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Return what a client is told about an error; `param` is the parameter that it concerns.

    The cause of a failure within the server is logged, and not told: it may quote another client's text.
    """
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
        case EngineClosed():
            return stopping()
        case ContextError():
            return invalid(str(error), param, "context_length_exceeded")
        case ConfigError():
            path, message = error.problems[0]
            name = ".".join(path) or param
            return invalid(f"{name}: {message}" if path else message, name)
        case UsageError() | DataError():
            return invalid(str(error), param)
        case CheckpointError():
            return ApiError(500, str(error), code="model_failed", headers=_ONCE)
        case ModelFailed():
            _log.error("a step of the model failed", exc_info=error)
            return ApiError(500, "the model failed in a step of this answer", code="model_failed", headers=_ONCE)
        case AxonError():
            return ApiError(500, str(error), headers=_ONCE)
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "an error in the server; its log says more", code="internal_error", headers=_ONCE)


def stopping() -> ApiError:
    """Return the error of a request that meets a server which is being stopped."""
    return ApiError(503, "the server is stopping; ask another, or again later", code="stopping", headers=_RETRY)


_RETRY = {"Retry-After": "5"}
