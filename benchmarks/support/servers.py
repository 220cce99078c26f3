"""Servers as processes: started, waited for, measured and ended (Linux)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from support.processes_memory import held


class Server:
    """A command that serves HTTP on this machine, with all processes that it starts.

    Attributes:
        root: its address.
        group: the number of its process group.

    Args:
        command: what to run; `{port}` in it becomes a free port.
        ready: the path that answers with the status 200 when it takes requests.
        environment: variables besides this process's own.
        seconds: how long it may take to start.

    Raises:
        RuntimeError: it ends, or does not answer in time; the message has the last lines that it printed.
        FileNotFoundError: there is no such program.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: str = "/health",
        environment: Mapping[str, str] | None = None,
        seconds: float = 300,
    ) -> None:
        port = free_port()
        self.root = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
        self.group = self._process.pid
        end = time.monotonic() + seconds
        while not self._answers(ready):
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(self.tail() or f"no answer within {seconds:g} seconds")
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def memory(self) -> int:
        """Return the bytes that its processes hold; a page that several of them share counts once."""
        return held(self.group)

    def resident(self) -> int:
        """Return the bytes of memory that the command itself holds."""
        pages = Path(f"/proc/{self.group}/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self) -> int:
        """Ask it to end, wait until it has, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def stop(self) -> None:
        """End all its processes."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.group, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def tail(self, lines: int = 8) -> str:
        """Return the last lines that it printed."""
        end = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 1 << 16, max(0, end - (1 << 16)))  # moves nothing where the processes write
        return "\n".join(text.decode(errors="replace").splitlines()[-lines:])

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.root + path, timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return made.getsockname()[1]
