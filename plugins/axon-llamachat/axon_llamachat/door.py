"""Who is inside: the requests that are being answered, and how a server that stops waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from axon_llamachat.api_error import ApiError, stopping

__all__ = ["Door"]

T = TypeVar("T")


class Door:
    """Lets requests in until it is closed."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._cut = asyncio.Event()
        self._turned_out = set[asyncio.Task[Any] | None]()

    @property
    def cut_off(self) -> int:
        """How many requests were ended before their answers were complete."""
        return len(self._turned_out)

    @property
    def is_open(self) -> bool:
        """Whether requests are let in."""
        return self._open

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[None]:
        """Count a request as inside during the block. Raises `ApiError` if the door is closed."""
        if not self._open:
            raise stopping()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        except asyncio.CancelledError:  # the process ends
            self.turn_out()
            raise
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def until_cut(self) -> None:
        """Return when those inside must leave."""
        await self._cut.wait()

    def turn_out(self) -> ApiError:
        """Count this task's request as ended before its answer was complete, and return what its client is told."""
        self._turned_out.add(asyncio.current_task())
        return stopping()

    async def before_cut(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. Raises `ApiError` if those inside must leave before there is one."""
        working, cut = asyncio.ensure_future(work), asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait([working, cut], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise self.turn_out()
            return working.result()
        finally:
            working.cancel()
            cut.cancel()
            await asyncio.gather(working, cut, return_exceptions=True)

    def cut(self) -> None:
        """Have those inside leave now."""
        self._cut.set()

    async def close(self, grace: float) -> None:
        """Let nobody in any more, and wait until all have left; after `grace` seconds they must."""
        self._open = False
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            self.cut()
            await self._empty.wait()
