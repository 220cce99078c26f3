"""Running the application: the socket, the signals, and the end that waits for answers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial

import uvicorn
from starlette.applications import Starlette

from axon_core import UsageError
from axon_llamachat.connection import Connection
from axon_llamachat.door import Door
from axon_llamachat.limits import ServerLimits

__all__ = ["bound", "check_exposure", "make_server", "serve"]

_CLOSING = 5  # seconds for connections to close after the last answer
_BACKLOG = 100  # connections that asyncio takes at once, before it looks whether one is too many
_FILES = 200 + 3 * _BACKLOG  # that a server has open besides the connections that it keeps


def check_exposure(host: str, key: str | None) -> None:
    """Raise `UsageError` if a server at `host` could be reached from other machines without a key."""
    if key is None and not _is_local(host):
        raise UsageError(
            f"the address {host} can be reached from other machines, and anybody there could use the models; give a "
            "key with --api-key or AXON_API_KEY, or use --host 127.0.0.1"
        )
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError("the key must be one or more printable ASCII characters without spaces")


def bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises `UsageError` if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
        return made
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen at {host} port {port}: {reason}; choose another with --port") from None


def serve(
    app: Starlette,
    where: socket.socket,
    *,
    grace: float,
    started: Callable[[], None] = lambda: None,
    said: Callable[[str], None] = lambda text: None,
) -> int:
    """Serve until SIGINT or SIGTERM, and return how many requests were ended before their answers were complete.

    After the signal, requests get the status 503, and those that run may end within `grace` seconds; then they end
    with an error. A second signal ends them at once.

    Args:
        app: what `make_app` returned.
        where: the bound socket.
        grace: seconds for answers to end.
        started: called when the server takes requests.
        said: called with what is happening while it ends.
    """
    return asyncio.run(_serve(app, where, grace, started, said))


async def _serve(
    app: Starlette, where: socket.socket, grace: float, started: Callable[[], None], said: Callable[[str], None]
) -> int:
    door: Door = app.state.door
    server = make_server(app)
    stop, now = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    running = asyncio.create_task(server.serve(sockets=[where]))
    while not server.started and not running.done():
        await asyncio.sleep(0.005)
    started()
    await stop.wait()
    said(f"Stopping: answers that run have {grace:g} seconds; Ctrl-C ends them now.")
    closing = asyncio.create_task(door.close(grace))
    hurried = asyncio.create_task(now.wait())
    await asyncio.wait([closing, hurried], return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    door.cut()
    await asyncio.wait([closing], timeout=_CLOSING)  # some clients do not read what is sent to them
    server.should_exit = True
    await running
    return door.cut_off


def make_server(app: Starlette) -> uvicorn.Server:
    """Return a server for what `make_app` returned, with its limits, and without uvicorn's signals and logs."""
    limits: ServerLimits = app.state.limits
    room = _allow_files(limits.connections + _FILES) - _FILES
    limits = replace(limits, connections=max(1, min(limits.connections, room)))
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients must not fill the log
    return _Server(
        uvicorn.Config(
            app,
            http=partial(Connection, limits),  # pyright: ignore[reportArgumentType]
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=_CLOSING,
            h11_max_incomplete_event_size=limits.header_bytes,
        )
    )


class _Server(uvicorn.Server):
    """Uvicorn's server without its handling of signals, which would end answers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _allow_files(n: int) -> int:
    """Let this process open `n` files, or as many as the system permits, and return how many.

    Each connection is one. Where there are too few, asyncio writes an error for every connection that it cannot take.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return n
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= n:
        return n
    allowed = n if hard == resource.RLIM_INFINITY else min(n, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def _is_local(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
