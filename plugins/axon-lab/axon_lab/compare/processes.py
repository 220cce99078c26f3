"""The processes of a comparison's runs: so many at once, ended gently on a signal, and what became of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from axon_core import printable

__all__ = ["Ended", "WorkerJob", "run_jobs"]

_POLL = 0.1  # seconds between two looks at the processes
_GRACE = 120.0  # seconds for them to save and end
_LONGEST = 400  # characters of a reason
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class WorkerJob:
    """A process to start.

    Attributes:
        arguments: what `axon_lab.compare.worker` is given.
        about: whom to tell of its end; its return value says whether others may still begin.
    """

    arguments: Sequence[str]
    about: Callable[[Ended], bool]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative, the signal that killed it.
        reason: what it said at last, or which signal it was, in one line.
        asked: whether it was asked to end.
    """

    code: int
    reason: str
    asked: bool


class _Running:
    """A process that has started; it ends when its standard input is closed."""

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self._said: IO[bytes] = tempfile.TemporaryFile()
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "axon_lab.compare.worker", *job.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the others to end
        )
        self.asked = False

    def stop(self) -> None:
        """Ask it to save and end."""
        self.asked = True
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ended(self) -> Ended | None:
        """Return how it ended, or None if it has not."""
        if (code := self._process.poll()) is None:
            return None
        with self._said as said:
            said.seek(0)
            text = said.read().decode("utf-8", "replace")
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        return Ended(code, _reason(code, text), self.asked)


def _reason(code: int, said: str) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    _, marked, message = said.rpartition("Error: ")
    lines = [line.strip() for line in (message if marked else said).splitlines() if line.strip()]
    words = " ".join(lines) if marked else (lines or [f"it ended with code {code} and said nothing"])[-1]
    words = printable(words, line=True)
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def run_jobs(jobs: Sequence[WorkerJob], at_once: int, tell: Callable[[int, int], None]) -> bool:
    """Run the jobs, so many at once, and return whether a signal ended them early.

    On SIGINT, SIGTERM or SIGHUP the processes are asked to save and end, and no more are begun; a second signal, or too
    long a wait, ends them at once.

    Args:
        jobs: the processes, in the order in which they begin.
        at_once: how many run at the same time.
        tell: is told how many have ended and how many are running, often.
    """
    waiting, running, ended = list(reversed(jobs)), list[_Running](), 0
    until = float("inf")
    with _signals() as caught:
        try:
            while running or (waiting and not caught):
                while waiting and len(running) < at_once and not caught:
                    running.append(_Running(waiting.pop()))
                time.sleep(_POLL)
                for one in [*running]:
                    if (end := one.ended()) is not None:
                        running.remove(one)
                        ended += 1
                        if not one.job.about(end):
                            waiting.clear()
                tell(ended, len(running))
                if caught and until == float("inf"):
                    until = time.monotonic() + _GRACE
                    for one in running:
                        one.stop()
                if len(caught) > 1 or time.monotonic() > until:
                    for one in running:
                        one.kill()
        finally:
            for one in running:  # after an error: they save and end by themselves
                one.stop()
        return bool(caught)


@contextmanager
def _signals() -> Generator[list[int]]:
    """Within the block, collect the signals that ask this process to end; only the main thread gets any."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as SIGHUP is under `nohup`
            signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
