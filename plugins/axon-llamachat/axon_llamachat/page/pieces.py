"""The pieces of an answer at the pace of a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from axon_eet import Answer, AnswerPiece

__all__ = ["paced"]

_PACE = 0.05
_ALIVE = 1.0


async def paced(answer: Answer, seconds: float = _PACE) -> AsyncGenerator[list[AnswerPiece]]:
    """Yield what an answer gains, at most every `seconds`; and nothing, every second in which it gains nothing.

    Between two yields the page notices that the browser has left. When the iteration ends, however it does, the answer
    is cancelled. Raises what the answer raises.
    """
    loop, taken = asyncio.get_running_loop(), list[AnswerPiece]()
    coming: asyncio.Future[AnswerPiece] | None = None
    with answer:
        try:
            due = loop.time() + _ALIVE
            while True:
                coming = coming or asyncio.ensure_future(anext(answer))
                await asyncio.wait([coming], timeout=max(due - loop.time(), 0))
                if coming.done():
                    try:
                        taken.append(coming.result())
                    except StopAsyncIteration:
                        break
                    coming, due = None, min(due, loop.time() + seconds)
                if loop.time() >= due:
                    yield taken
                    taken, due = [], loop.time() + _ALIVE
            yield taken
        finally:
            if coming is not None:
                coming.cancel()
