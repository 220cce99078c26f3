"""A small model, and servers for it: in a thread of the test, or as a command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from axon_core import CHAT_TEMPLATES, ByteTokenizer
from axon_eet import Answer, AnswerPiece, Engine, EngineReport, ModelFailed, Question, QueueFull
from axon_eet.runners import EngineMemory
from axon_llamachat import ServedModel, ServerLimits, make_app
from axon_llamachat.server import bound, make_server
from axon_xllama import XLlama

CONTEXT = 256


@pytest.fixture(scope="session")
def model() -> XLlama:
    """A model with random weights, sharp enough that its texts differ."""
    torch.manual_seed(0)
    made = XLlama.build(vocab_size=258, context=CONTEXT, dim=32, n_layers=2, n_heads=2)
    for parameter in made.parameters():
        parameter.data *= 3 if parameter.dim() > 1 else 1
    return made.eval()


class Running:
    """A server that runs in a thread.

    Attributes:
        port: where it listens.
        url: the base of OpenAI's endpoints.
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._where = bound("127.0.0.1", 0)
        self.port: int = self._where.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self.server = make_server(app)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def _run(self) -> None:
        self.loop.run_until_complete(self.server.serve(sockets=[self._where]))
        left = asyncio.all_tasks(self.loop)  # those of the lifespan, which a forced exit does not end
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def end(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join()
        self._where.close()


@contextmanager
def running(models: Sequence[ServedModel], **options: Any) -> Iterator[Running]:
    """Serve `models` in the block."""
    server = Running(make_app(models, **options))
    try:
        yield server
    finally:
        server.end()


def served(engine: Any, name: str = "tiny", template: str | None = "llama2", **options: Any) -> ServedModel:
    """The model of an engine under a name."""
    made = CHAT_TEMPLATES.build(template) if template else None
    return ServedModel(name, engine, ByteTokenizer(), CONTEXT, made, "tiny-F32", **options)


@pytest.fixture(scope="session")
def engine(model: XLlama) -> Iterator[Engine]:
    with Engine(model, ByteTokenizer(), memory="8MB", rows=8, waiting=64) as made:
        yield made


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Running]:
    """A server of one model, `tiny`, with Llama 2's template."""
    with running([served(engine)]) as made:
        yield made


@pytest.fixture(scope="session")
def serving_long() -> Iterator[Callable[..., Running]]:
    """Return what `serving` does; the servers end with the tests."""
    with ExitStack() as stack:
        yield lambda *models, **options: stack.enter_context(running(models, **options))


@pytest.fixture
def serving() -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server of an engine, or of several models; it ends with the test."""
    with ExitStack() as stack:

        def start(*engines: Any, **options: Any) -> Running:
            models = [one if isinstance(one, ServedModel) else served(one) for one in engines]
            return stack.enter_context(running(models, **options))

        yield start


class Scripted:
    """An engine that writes what it is told to: each answer is left to the test, which puts pieces into it."""

    def __init__(self, *, text: str = "", full: int = 0) -> None:
        self.notes: list[str] = []
        self.answers: list[Answer] = []
        self.asked = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self._text, self._full = text, full

    def submit(self, question: Question) -> Answer:
        if self._full:
            self._full -= 1
            raise QueueFull("at most 1 texts may wait, and 1 do; ask again later")
        answer = Answer(question, len(question.prompt), self.ended.release)
        self.answers.append(answer)
        if self._text:
            self.write(answer, self._text, end=True)
        self.asked.release()
        return answer

    def write(self, answer: Answer, text: str, *, end: bool = False) -> None:
        """Put the bytes of `text` into an answer, one a piece."""
        for choice in range(answer.question.n):
            for i, character in enumerate(text, 1):
                finish = "length" if end and i == len(text) else None
                answer.put(AnswerPiece(choice, character, ord(character), -1.0, (), finish))

    def put(self, answer: Answer, text: str) -> None:
        """Put one piece into an answer."""
        answer.put(AnswerPiece(0, text, 97, -1.0, (), None))

    def report(self) -> EngineReport:
        return EngineReport(1, 2, 3, 4, 5, 6, 7, 8, 9, EngineMemory(1000, 500, 250))


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory) -> Path:
    """A model folder called `little`."""
    path = tmp_path_factory.mktemp("models") / "little"
    model.save(path, ByteTokenizer())
    return path


class Command:
    """`axon serve` as a process."""

    def __init__(self, *arguments: str) -> None:
        paged = () if "--page" in arguments else ("--no-page",)  # gradio takes seconds to import
        self.process = subprocess.Popen(
            [sys.executable, "-m", "axon_core", "serve", *arguments, *paged, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"at (http://\S+)/v1", line):
                self.root = match[1]
                return
        raise AssertionError(self.process.communicate()[1])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        output = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(output)


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    made: list[Command] = []

    def start(*arguments: str) -> Command:
        made.append(Command(*arguments))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def as_served() -> Callable[..., ServedModel]:
    """Return the function that makes a model of an engine."""
    return served


@pytest.fixture
def limits() -> type[ServerLimits]:
    return ServerLimits


@pytest.fixture
def model_failed() -> type[ModelFailed]:
    return ModelFailed
