"""Connections of clients that are slow on purpose, or many: uvicorn's protocol with deadlines and a limit."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from axon_llamachat.limits import ServerLimits

__all__ = ["Connection"]


class Connection(H11Protocol):
    """A connection that is closed if the head of a request, or the reading of an answer, takes too long.

    Args:
        limits: how long, and how many connections there may be.
        arguments: what uvicorn gives its protocol.
    """

    def __init__(self, limits: ServerLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._head: asyncio.TimerHandle | None = None  # until the head of a request is complete
        self._stall: asyncio.TimerHandle | None = None  # until the client reads on

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        self._head = _stopped(self._head)
        self._stall = _stopped(self._stall)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a request that is incomplete do not prolong the time that it has."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """Begin to wait for a client that leaves what it gets unread."""
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self._limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        self._stall = _stopped(self._stall)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection without a request, and without waiting for a client that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _watch_head(self) -> None:
        """Limit the time until a request's head is complete, while none is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        keeps_alive = self.timeout_keep_alive_task is not None
        if answering or keeps_alive or self.transport.is_closing():
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self._limits.header_seconds, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
