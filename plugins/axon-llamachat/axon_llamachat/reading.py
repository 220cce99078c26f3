"""The JSON object in the body of a request: of bounded size, depth and time."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn, cast

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from axon_core import parse_json
from axon_llamachat.api_error import ApiError, invalid
from axon_llamachat.limits import ServerLimits

__all__ = ["parse_object", "read_object", "read_raw"]

_CLOSE = {"Connection": "close"}


async def read_object(request: HttpRequest, limits: ServerLimits) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        ApiError: see `read_raw` and `parse_object`.
    """
    return parse_object(await read_raw(request, limits))


async def read_raw(request: HttpRequest, limits: ServerLimits) -> bytes:
    """Return the body of a request that says it is JSON.

    Other media types are refused: a page in a browser could send those without being asked for by this server.

    Raises:
        ApiError: the media type is not JSON, the body is too large or too slow, or the server stops.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be JSON; send Content-Type: application/json, not {kind[:100]!r}")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await request.app.state.door.before_cut(_body(request, limits))
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise ApiError(408, message, code="timeout", headers=_CLOSE) from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises `ApiError` if it is none, or is nested too deep."""
    try:
        value = parse_json(raw.decode(), parse_constant=_not_a_number, object_pairs_hook=_fields)
    except UnicodeDecodeError as error:
        raise invalid(f"the body must be UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None
    except ValueError as error:
        raise invalid(f"the body must be JSON: {str(error)[:300]}") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


async def _body(request: HttpRequest, limits: ServerLimits) -> bytes:
    """Return the body; of one that is too large, so much more is read that most clients see the answer."""
    stated = request.headers.get("content-length", "0")
    too_large = int(stated) > limits.body
    raw, size = bytearray(), 0
    try:
        async for piece in request.stream():
            size += len(piece)
            too_large |= size > limits.body
            if size > 4 * limits.body:
                break
            if not too_large:
                raw += piece
    except ClientDisconnect:
        raise invalid("the body is incomplete") from None
    if too_large:
        raise ApiError(413, f"a body may have at most {limits.body:,} bytes", code="too_large", headers=_CLOSE)
    return bytes(raw)


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; one that has a field twice could mean two things."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields
