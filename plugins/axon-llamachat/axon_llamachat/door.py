"""Who is inside: the requests that are being answered, and how a server that stops waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from axon_llamachat.api_error import stopping

__all__ = ["Door"]


class Door:
    """Lets requests in until it is closed.

    Attributes:
        cut_off: how many requests were ended before their answers were complete.
    """

    def __init__(self) -> None:
        self.cut_off = 0
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._cut = asyncio.Event()

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
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def until_cut(self) -> None:
        """Return when those inside must leave."""
        await self._cut.wait()
        self.cut_off += 1

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
