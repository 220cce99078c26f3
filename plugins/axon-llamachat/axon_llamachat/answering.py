"""From questions to a response: asked of the engine, followed to the end or until the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from axon_core import to_json
from axon_eet import Answer, AnswerPiece, Engine, Question
from axon_llamachat.api_error import ApiError, as_api_error
from axon_llamachat.door import Door
from axon_llamachat.metrics import Timer
from axon_llamachat.wire.reply import Reply, usage_json

__all__ = ["ask", "respond"]

_Take = Callable[[int, Answer, AnswerPiece], Awaitable[None]]


class _Gone(Exception):
    """The client has closed the connection."""


def ask(engine: Engine, questions: Sequence[Question]) -> list[Answer]:
    """Submit all questions, or none. Raises `ApiError` if one is refused, as when the queue is full."""
    answers: list[Answer] = []
    try:
        for question in questions:
            answers.append(engine.submit(question))
    except Exception as error:
        for answer in answers:
            answer.cancel()
        raise as_api_error(error) from error
    return answers


async def respond(
    request: HttpRequest, reply: Reply, answers: Sequence[Answer], *, stream: bool, seconds: float
) -> Response:
    """Return the response to a request: a stream of events, or one object when all texts are complete.

    Whatever ends it early, a disconnect above all, cancels the answers.

    Raises:
        ApiError: the engine failed, or the answer took more than `seconds`.
    """
    door: Door = request.app.state.door
    timer = request.app.state.metrics.timer(reply.model.name)
    if stream:
        return _EventStream(reply, answers, door, timer, seconds)
    choices: list[list[dict[str, Any]]] = [[] for _ in range(reply.choices)]

    async def take(index: int, answer: Answer, piece: AnswerPiece) -> None:
        choices[index] += reply.push(index, answer, piece)

    try:
        await _while_connected(_follow(answers, reply.n, take, timer, seconds), answers, request.receive, door)
    except _Gone:
        return Response(status_code=499)  # nobody reads it
    finally:
        timer.end(answers)
    return JSONResponse(reply.whole(choices, usage_json([answer.usage for answer in answers])))


class _EventStream(Response):
    """A response of server-sent events: `data: {…}` each, and `data: [DONE]` unless an error ends it."""

    def __init__(self, reply: Reply, answers: Sequence[Answer], door: Door, timer: Timer, seconds: float) -> None:
        self._reply, self._answers, self._door = reply, answers, door
        self._timer, self._seconds = timer, seconds
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def event(value: dict[str, Any] | str) -> None:
            text = value if isinstance(value, str) else to_json(value, separators=(",", ":"))
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _while_connected(self._events(event), self._answers, receive, self._door)
        except _Gone:
            return
        except Exception as error:
            await event(as_api_error(error).body)
        finally:
            for answer in self._answers:
                answer.cancel()
            self._timer.end(self._answers)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, event: Callable[[dict[str, Any] | str], Awaitable[None]]) -> None:
        reply = self._reply

        async def take(index: int, answer: Answer, piece: AnswerPiece) -> None:
            for choice in reply.push(index, answer, piece):
                await event(reply.event(choice))

        for choice in reply.opening():
            await event(reply.event(choice))
        await _follow(self._answers, reply.n, take, self._timer, self._seconds)
        for last in (*reply.last_events(usage_json([answer.usage for answer in self._answers])), "[DONE]"):
            await event(last)


async def _follow(answers: Sequence[Answer], n: int, take: _Take, timer: Timer, seconds: float) -> None:
    """Give each piece of all answers to `take`, and cancel those that are not complete when it ends."""

    async def follow(number: int, answer: Answer) -> None:
        async for piece in answer:
            timer.piece(number * n + piece.choice)
            await take(number * n + piece.choice, answer, piece)

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for number, answer in enumerate(answers):
                group.create_task(follow(number, answer))
    except TimeoutError:
        message = f"the answer took more than {seconds:g} seconds; ask for fewer tokens"
        raise ApiError(504, message, code="timeout", headers={"x-should-retry": "false"}) from None
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for answer in answers:
            answer.cancel()


async def _while_connected(work: Awaitable[None], answers: Sequence[Answer], receive: Receive, door: Door) -> None:
    """Await `work`, but not beyond the client's disconnect or the closing of the door.

    Answers that are complete when the door closes are still sent.

    Raises:
        _Gone: the client has closed the connection.
        ApiError: the server stops.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(each) for each in (work, disconnected(), door.until_cut())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if all(answer.done for answer in answers):
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            await tasks[0]
        elif tasks[1].done():
            raise _Gone
        else:
            raise door.turn_out()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
