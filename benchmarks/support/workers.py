"""Processes that take turns: each makes a function once, and calls it when it is asked to."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Function = Callable[..., Any]


class Worker:
    """A process with one function, `make(*arguments)`; calling the worker calls the function there.

    While it waits it sleeps: the threads of an OpenMP pool spin for some milliseconds after their work, then block.

    Raises:
        ModuleNotFoundError: `make` needs a package that is not installed.
        RuntimeError: `make` or a call of the function raised something else, or the process died.
    """

    def __init__(self, make: Callable[..., Function], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __call__(self, *arguments: object) -> Any:
        """Return what the function returns there."""
        self._connection.send(arguments)
        return self._receive()

    def close(self) -> None:
        """End the process and free its memory."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            result, missing, error = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process died (exit code {self._process.exitcode}), perhaps for memory") from None
        if missing:
            raise ModuleNotFoundError(error, name=missing)
        if error:
            raise RuntimeError(error)
        return result


def _serve(connection: Connection, make: Callable[..., Function], arguments: tuple[object, ...]) -> None:
    function: Function | None = None
    while True:
        result = missing = error = None
        try:
            if function is None:
                function = make(*arguments)
            else:
                result = function(*arguments)
        except ModuleNotFoundError as reason:
            missing, error = reason.name or "?", str(reason)
        except Exception as reason:
            traceback.print_exc()
            error = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
        connection.send((result, missing, error))
        try:
            arguments = connection.recv()
        except EOFError:  # the parent has gone
            return
