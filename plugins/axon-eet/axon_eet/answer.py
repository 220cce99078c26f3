"""Questions to an engine, and answers that arrive piece by piece, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from pydantic import Field

from axon_core import AxonError, Request
from axon_core.generation import Finish


class QueueFull(AxonError):
    """As many questions wait as the engine lets wait."""


class EngineClosed(AxonError):
    """The engine was closed before it answered."""


class ModelFailed(AxonError):
    """The model raised an error in a step that this answer was part of; `__cause__` is the error."""


class Question(Request):
    """A text to continue, how, and what to tell about it."""

    logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many of the likeliest tokens come with each token (`AnswerPiece.top`); None and 0 mean none."""
    echo: bool = False
    """Whether the prompt's tokens are scored too (`Answer.prompt`)."""
    n: int = Field(default=1, ge=1, le=128)
    """How many texts to write; text i draws what a single one with seed `seed + i` draws."""
    priority: int = 0
    """Questions of higher priority run first; those of equal priority in the order they arrive."""


class Scored(NamedTuple):
    """A token of a prompt, as the model scores it."""

    token: int
    """The token."""
    logprob: float | None
    """Its log-probability after the tokens before it, in nats; None for the first."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place and their log-probabilities, the likeliest first."""


class AnswerPiece(NamedTuple):
    """What one token adds to one text of an answer."""

    choice: int
    """The text's number, counted from 0."""
    text: str
    """May be empty, while a character lacks bytes or the text may turn out to be a stop string."""
    token: int
    """The token."""
    logprob: float
    """Its log-probability under the model as it is: before penalty, temperature and filters, in nats."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place and their log-probabilities, the likeliest first (`Question.logprobs`)."""
    finish: Finish | None
    """Why the text ends with this piece, or None if it continues."""


@dataclass
class Usage:
    """How many tokens an answer has cost so far."""

    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int = 0
    """Those of them whose keys and values an earlier question had left."""
    completion_tokens: int = 0
    """Tokens generated, in all texts."""


class Answer:
    """The pieces of a question's texts, as they are generated: iterate over it with `for` or `async for`.

    Each piece is delivered once, whoever asks for it. An error that concerns this answer is raised where its next piece
    would come: `ModelFailed`, `EngineClosed`, or `CheckpointError` if the model's scores are not finite. As a context
    manager it is cancelled when the block ends.
    """

    def __init__(self, question: Question, prompt_tokens: int, on_cancel: Callable[[], None]) -> None:
        self.question = question
        """What was asked."""
        self.usage = Usage(prompt_tokens)
        """How many tokens it has cost so far."""
        self.prompt: list[Scored] = []
        """The prompt's tokens and their scores, complete before the first piece; empty unless `echo` is set."""
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._pieces: deque[AnswerPiece] = deque()
        self._early: list[AnswerPiece] = []  # of texts that are ahead of the one that scores the prompt
        self._open = question.n  # texts that have not ended
        self._error: BaseException | None = None
        self._cancelled = False
        self._wake: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` ended it."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """Whether no further piece will arrive."""
        with self._changed:
            return self._done()

    def cancel(self) -> None:
        """End it now; the engine frees its memory before its next step. Pieces that arrived remain."""
        with self._changed:
            if self._done():
                return
            self._cancelled = True
            self._notify()
        self._on_cancel()

    def put(self, piece: AnswerPiece) -> None:
        """Deliver a piece; for the engine."""
        with self._changed:
            if not self._done():
                self._early.append(piece)
                self.usage.completion_tokens += 1
                self._open -= piece.finish is not None
                if not self.question.echo or len(self.prompt) == self.usage.prompt_tokens:
                    self._pieces += self._early
                    self._early.clear()
                    self._notify()

    def fail(self, error: BaseException) -> None:
        """End it with an error; for the engine."""
        with self._changed:
            if not self._done():
                self._error = error
                self._notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[AnswerPiece]:
        return self

    def __next__(self) -> AnswerPiece:
        with self._changed:
            while not self._ready():
                self._changed.wait()
            piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> AsyncIterator[AnswerPiece]:
        return self

    async def __anext__(self) -> AnswerPiece:
        while True:
            with self._changed:
                if self._ready():
                    piece = self._take()
                    break
                loop = asyncio.get_running_loop()
                arrived: asyncio.Future[None] = loop.create_future()
                self._wake.append(partial(_resolve, loop, arrived))
            await arrived
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _done(self) -> bool:
        return self._cancelled or self._error is not None or self._open == 0

    def _ready(self) -> bool:
        return bool(self._pieces) or self._done()

    def _take(self) -> AnswerPiece | None:
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _notify(self) -> None:
        self._changed.notify_all()
        wake, self._wake = self._wake, []
        for call in wake:
            call()


def _resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Wake whoever awaits `future`, from any thread; nobody does if the loop is closed."""
    try:
        loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))
    except RuntimeError:
        pass
