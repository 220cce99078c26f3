"""Ctrl-C and requests to terminate, put off until work can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["first_signal"]

_log = logging.getLogger("axon")


@contextmanager
def first_signal(listen: bool) -> Generator[list[int]]:
    """Within the block, collect the first SIGINT or SIGTERM instead of dying of it; a second one acts as ever.

    Nothing is collected where `listen` is False, and outside the main thread, which alone gets signals.
    """
    caught: list[int] = []
    if not listen or threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        restore()
        _log.warning("finishing this step and saving; once more to stop at once")

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
