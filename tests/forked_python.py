"""A process that imports torch once, and forks a child for each piece of code.

Run as `python -W error forked_python.py`: it reads a line of JSON for each, with the `code`, the `folder` that it runs
in and a file for what it prints, and answers with the exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class ForkedPython:
    """Runs code as `python -W error -c CODE` does, in children of one process.

    Args:
        server: the process, with pipes.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, code: str, folder: Path) -> None:
        """Run code in a folder; raise `AssertionError` with what it printed if it fails."""
        printed = folder.with_name(f"{folder.name}-printed.txt")
        assert self._server.stdin and self._server.stdout
        print(json.dumps({"code": code, "folder": str(folder), "printed": str(printed)}), file=self._server.stdin)
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "0\n", printed.read_text(encoding="utf-8")


@contextmanager
def forked_python() -> Generator[ForkedPython]:
    """Start the process, which ends with the block."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-W", "error", __file__], **pipes) as server:
        yield ForkedPython(server)


def _child(code: str, folder: str, printed: str) -> None:
    """Run the code as a script, and end."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(folder)
        sys.stdout, sys.argv, sys.path[0] = sys.__stdout__, ["-c"], ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _serve() -> None:
    for name in ("torch._dynamo", "matplotlib.figure"):  # for the first optimizer, and for the picture of a run
        import_module(name)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            _child(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
