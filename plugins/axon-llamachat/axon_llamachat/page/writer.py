"""What a page has written: requests of the API, asked of the engine, with their pieces at the pace of a browser."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from axon_eet import AnswerPiece, Question
from axon_llamachat.answering import ask
from axon_llamachat.limits import ServerLimits
from axon_llamachat.metrics import Timer
from axon_llamachat.page.pieces import paced
from axon_llamachat.page.shown import tell, telling_errors
from axon_llamachat.served import ServedModel
from axon_llamachat.wire.body import parse_body
from axon_llamachat.wire.sampled import SampledBody

__all__ = ["Writer"]

B = TypeVar("B", bound=SampledBody)


class Writer:
    """Has a model write.

    Args:
        model: what is asked.
        limits: how long an answer may take.
        timer: returns what times an answer.
    """

    def __init__(self, model: ServedModel, limits: ServerLimits, timer: Callable[[], Timer]) -> None:
        self.model, self._limits, self._timer = model, limits, timer

    async def write(
        self, kind: type[B], values: Mapping[str, Any], question: Callable[[B], Question]
    ) -> AsyncGenerator[list[AnswerPiece]]:
        """Yield the pieces of the answer to a request of this kind, as the API would read it.

        The answer has at most as many tokens as asked for, and as the context has room for. If the request is refused,
        the engine fails, or the answer takes too long, the browser is told, and the pieces end.
        """
        with telling_errors():
            most = values["max_tokens"]
            body = parse_body(kind, {**values, "max_tokens": 1})
            short = await asyncio.to_thread(question, body)
            room = self.model.context - len(short.prompt)
            asked = short.model_copy(update={"max_new_tokens": max(min(most, room), 1)})
            (answer,) = ask(self.model.engine, [asked])
            seconds = self._limits.answer_seconds
            timer, end = self._timer(), time.monotonic() + seconds
            try:
                async with aclosing(paced(answer)) as arriving:
                    async for pieces in arriving:
                        for piece in pieces:
                            timer.piece(piece.choice)
                        yield pieces
                        if time.monotonic() > end and not answer.done:
                            tell(f"the answer took more than {seconds:g} seconds; ask for fewer tokens")
                            return
            finally:
                answer.cancel()
                timer.end([answer])
