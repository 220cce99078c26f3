"""The gate to the pages: which requests reach gradio, how large they may be, and what browsers may do with a page."""

from __future__ import annotations

import html
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from axon_core import to_json
from axon_llamachat.api_error import ApiError
from axon_llamachat.door import Door
from axon_llamachat.limits import ServerLimits
from axon_llamachat.page.mounted import HasBlocks, mounted, running
from axon_llamachat.reading import parse_object, read_raw

__all__ = ["Gate"]

_READ = ("/", "/config", "/theme.css", "/gradio_api/startup-events", "/gradio_api/queue/data")
_FILES = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_WRITTEN = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
_EVENTS = "/gradio_api/queue/data"
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",  # gradio's own; texts of models are not HTML
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "worker-src": "'self' blob:",
    "base-uri": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = [
    (b"content-security-policy", "; ".join(f"{name} {value}" for name, value in _POLICY.items()).encode()),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Gate:
    """The application under `/page/NAME/`, which lets through only what a page needs.

    gradio has routes that read files, take uploads, fetch from other servers and more: a request to any but the few
    listed here is a 404. Bodies are JSON within the server's limits, and not from another site. The stream of a page's
    events counts as an answer that runs, so that a server that stops waits for it.

    Args:
        pages: the pages by name.
        limits: how large bodies may be.
        door: counts those inside.
    """

    def __init__(self, pages: Mapping[str, HasBlocks], limits: ServerLimits, door: Door) -> None:
        self._apps: dict[str, Starlette] = {name: mounted(page) for name, page in pages.items()}
        self._limits, self._door = limits, door

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run the pages in the block."""
        async with AsyncExitStack() as stack:
            for app in self._apps.values():
                await stack.enter_async_context(running(app))
            yield

    async def index(self, request: HttpRequest) -> Response:
        """Return the list of pages, or lead to the only one."""
        links = {name: f"page/{quote(name, safe='')}/" for name in self._apps}
        if len(links) == 1:
            (only,) = links.values()
            return RedirectResponse(only, headers={"Cache-Control": "no-store"})
        rows = "".join(f'<li><a href="{link}">{html.escape(name)}</a></li>' for name, link in links.items())
        headers = {name.decode(): value.decode() for name, value in _HEADERS}
        return HTMLResponse(_INDEX.format(rows), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            HTTPException: there is no such page, or it does not offer this.
            ApiError: the request is refused.
        """
        root = scope["root_path"]
        name, slash, rest = scope["path"][len(root) + 1 :].partition("/")
        app, path = self._apps.get(name), f"/{rest}"
        if app is None or scope["type"] != "http":
            raise HTTPException(404)
        if not slash:
            await RedirectResponse(f"{quote(name, safe='')}/")(scope, receive, send)
            return
        inner = {**scope, "root_path": f"{root}/{name}"}
        if scope["method"] in ("GET", "HEAD") and (path in _READ or path.startswith(_FILES)):
            work = self._events if path == _EVENTS else self._plain
            await work(app, inner, receive, _with_headers(send))
        elif scope["method"] == "POST" and path in _WRITTEN:
            async with self._door.entered():
                await self._plain(app, inner, await self._checked(scope, receive), _with_headers(send))
        else:
            raise HTTPException(404)

    async def _plain(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return what gives the body again, once it is read and found to be a JSON object from the page itself."""
        request = HttpRequest(scope, receive)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise ApiError(403, "a page of another site may not use this one")
        raw = await read_raw(request, self._limits)
        parse_object(raw)
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": raw, "more_body": False}

        return again

    async def _events(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events of a page until they end, or the server does."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async with self._door.entered():
            try:
                await self._door.before_cut(self._plain(app, scope, receive, noted))
            except ApiError as error:
                if not begun:
                    raise
                last = {"msg": "unexpected_error", "message": error.message, "success": False}
                await send({"type": "http.response.body", "body": f"data: {to_json(last)}\n\n".encode()})


def _with_headers(send: Send) -> Send:
    """Return `send` with this server's rules for browsers in place of gradio's."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if not each[0].lower().startswith(b"access-control-")]
            message["headers"] = [*kept, *_HEADERS]
        await send(message)

    return sent


_INDEX = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Axon</title><style>:root{{color-scheme:light dark}}body{{font:18px system-ui;max-width:40em;margin:3em auto;
padding:0 1em}}li{{margin:.5em 0}}</style><h1>Models</h1><ul>{}</ul></html>"""
