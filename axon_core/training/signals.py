"""Ctrl-C, requests to terminate and closed terminals, put off until work can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from axon_core.processes import world

__all__ = ["first_signal"]

_log = logging.getLogger("axon")


@contextmanager
def first_signal(listen: bool) -> Generator[list[int]]:
    """Within the block, collect the first SIGINT, SIGTERM or SIGHUP instead of dying of it; a second one acts as usual.

    SIGHUP comes when the terminal is closed, from the system and from the shell, so a second one is ignored. A signal
    that is already ignored, as SIGHUP is under `nohup`, stays ignored. Nothing is collected if `listen` is False, or
    outside the main thread, which alone gets signals.
    """
    caught: list[int] = []
    if not listen or threading.current_thread() is not threading.main_thread():
        yield caught
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for other, handler in before.items():  # SIGHUP's is never restored in between: a second one would end it
            signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else handler)
        if world() == 1 or number == signal.SIGINT:  # torchrun sends others when another process has failed
            _log.warning("finishing this step and saving; interrupt again to stop at once")

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
