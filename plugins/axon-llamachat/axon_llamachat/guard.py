"""What every request passes before it is looked at: framing, headers, host and key, and whether the server stops."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from axon_llamachat.api_error import ApiError, as_api_error, invalid
from axon_llamachat.door import Door
from axon_llamachat.limits import ServerLimits
from axon_llamachat.metrics import Metrics

__all__ = ["Guard", "error_response"]

_CLOSE = {"Connection": "close"}
_LOCAL = {"localhost", "127.0.0.1", "[::1]"}
_OPEN = {"/health", "/metrics"}
"""Paths that are answered while the server stops."""
_PAGES = "/page/"
_BELOW = {"/v1/models/": "/v1/models/{name}", _PAGES: "/page/{name}"}
"""What paths that begin so are counted as."""


class Guard:
    """The outermost layer of the application; see the module.

    Args:
        app: the layers within.
        key: what clients must send as `Authorization: Bearer KEY`, and a browser that opens a page as the password of
            any name; without one, only requests that name this machine as their host are answered, so that no page in a
            browser reaches the server under a name of its own.
        door: lets requests in.
        metrics: counts responses.
        limits: how large headers may be.
        paths: the paths of all routes, by which responses are counted.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, door: Door, metrics: Metrics, limits: ServerLimits, paths: Sequence[str]
    ) -> None:
        self._app, self._door, self._metrics, self._limits = app, door, metrics, limits
        self._key = None if key is None else key.encode()
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it.

        Raises:
            ApiError: an error, this or another, occurs when the answer has begun: the connection is closed.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        known = (
            path if path in self._paths else next((_BELOW[each] for each in _BELOW if path.startswith(each)), "other")
        )
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                self._metrics.responded(known, message["status"])
            await send(message)

        try:
            self._check(scope)
            if path in _OPEN or path.startswith(_PAGES):  # the gate to the pages counts what takes time
                await self._app(scope, receive, counted)
            else:
                async with self._door.entered():
                    await self._app(scope, receive, counted)
        except Exception as error:
            if begun:
                raise
            await error_response(as_api_error(error))(scope, receive, counted)

    def _check(self, scope: Scope) -> None:
        """Raise `ApiError` if the request is refused."""
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        names = [name for name, _ in raw]
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(400, "the version of HTTP must be 1.1 or 1.0", headers=_CLOSE)
        if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
            raise ApiError(400, "a request must not state the length of its body in two ways", headers=_CLOSE)
        size = sum(len(name) + len(value) for name, value in raw)
        if size > self._limits.header_bytes or len(raw) > self._limits.headers:
            message = f"headers may have at most {self._limits.header_bytes:,} bytes, and be {self._limits.headers}"
            raise ApiError(431, message, headers=_CLOSE)
        headers = Headers(raw=raw)
        if self._key is None:
            if names.count(b"host") > 1 or _host(headers.get("host", "localhost")) not in _LOCAL:
                raise invalid("without --api-key, the server answers only requests to localhost or 127.0.0.1")
        elif scope["path"] != "/health":
            browser = scope["path"] == "/" or scope["path"].startswith(_PAGES)
            if not hmac.compare_digest(_given(headers.get("authorization", ""), browser), self._key):
                way = "enter any name, and the key as the password" if browser else "send Authorization: Bearer KEY"
                challenge = {"WWW-Authenticate": 'Basic realm="Axon", charset="UTF-8"' if browser else "Bearer"}
                raise ApiError(401, f"the key is missing or wrong; {way}", code="invalid_api_key", headers=challenge)


def _given(header: str, browser: bool) -> bytes:
    """Return the key in an `Authorization` header; from a browser, it may be the password of any name."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic" and browser:
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""


def error_response(error: ApiError) -> JSONResponse:
    """Return the response that tells an error."""
    return JSONResponse(error.body, error.status, error.headers)


def _host(header: str) -> str:
    """Return the name in a `Host` header, without the port."""
    name, _, port = header.rpartition(":")
    return (name if name and port.isdecimal() else header).lower()
