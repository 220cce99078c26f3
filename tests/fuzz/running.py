"""Commands run in a child process that has limits, and what every one of them must keep."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import resource
import select
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch._dynamo  # which the first optimizer imports: once, before any child is forked

from axon_core.cli import main

SECONDS = 20
"""How long a command may compute: the machine may be busy with other things too."""
MEMORY = 1 << 30
"""How much memory all commands may take, in bytes, beyond what was in use before the first one."""


class Broken(AssertionError):
    """A command broke a rule."""


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that it said."""
        return self.err + self.out


class _Hang(BaseException):
    """The time is over; no `except Exception` catches it."""


def run(arguments: Sequence[str], asks_much: bool = False) -> Outcome:
    """Run `axon` in this process, and check the rules that hold for every input.

    Args:
        arguments: what stands after `axon`.
        asks_much: whether the input names such sizes that the memory may rightly be too little.
    """
    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except _Hang:
        raise Broken(f"took more than {SECONDS} seconds: axon {list(arguments)}\n{traceback.format_exc()}") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    outcome = Outcome(code, out.getvalue(), err.getvalue())
    problem = _problem(outcome, arguments[0] in ("train", "generate"))
    if not (problem or asks_much) and "out of memory" in outcome.text:
        problem = "more memory than the input asks for"
    if problem:
        raise Broken(f"{problem}: axon {list(arguments)}\n{outcome.text[:4000]}\n{_where(arguments, outcome)}")
    return outcome


def _problem(outcome: Outcome, generates: bool) -> str | None:
    """Return the rule that is broken; what a model `generates` is printed as it is, where that is no terminal."""
    code, text = outcome.code, outcome.text
    shown = outcome.err if generates else text
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in text or "bug in Axon" in text:
        return "no message for a user"
    if code and "Error: " not in text and "problem" not in text and "damaged" not in text:
        return "failed without a word"
    if raw := next((c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None):
        return f"a control character in the output, {raw!r}"
    if max(map(len, text.splitlines()), default=0) > 20_000:
        return "a message that nobody can read"
    return None


def _where(arguments: Sequence[str], outcome: Outcome) -> str:
    """Run it again with its traceback, where the message was that of a bug."""
    if "bug in Axon" not in outcome.text and "out of memory" not in outcome.text:
        return ""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(["--debug", *arguments])
    return out.getvalue()[-3000:]


def _hang(number: int, frame: object) -> None:
    raise _Hang


def in_child(work: Callable[[], None], log: Path, patience: float = 120) -> None:
    """Do `work` in a forked process with the limits; raises `Broken` with what it raised there.

    Args:
        work: what to do; it writes each case to `log` before it begins.
        log: shows the case at which the process died or hung.
        patience: seconds without a new case after which the process is killed, as where a loop in C hangs.
    """
    log.write_text("the first case")
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads: the child uses none
        child = os.fork()
    if not child:
        _work(work, writer)
    os.close(writer)
    said = b""
    with open(reader, "rb", buffering=0) as pipe:
        while True:
            if select.select([pipe], [], [], 1)[0]:
                if not (part := pipe.read(1 << 16)):
                    break
                said += part
            elif time.time() - log.stat().st_mtime > patience:
                os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise Broken(said.decode("utf-8", "replace") or f"the process died ({status}) at {log.read_text()[:4000]}")


def write_modules(file: Path) -> None:
    """Write the names of all modules that are loaded."""
    file.write_text("\n".join(name for name, module in sys.modules.items() if module))


def import_modules(file: Path) -> None:
    """Import what `write_modules` wrote in a child, so that no child after it has to."""
    for name in file.read_text().split("\n"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _work(work: Callable[[], None], writer: int) -> None:
    """Do the work and end the process; the parent reads what went wrong."""
    status = 1
    try:
        torch.set_num_threads(1)
        os.fsync = lambda handle: None  # whatever happens here, the machine stays on
        sys.modules["matplotlib"] = None  # pyright: ignore[reportArgumentType]  a picture takes longer than the rest
        warnings.simplefilter("ignore")
        gc.freeze()  # what the parent made is never looked through
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        work()
        status = 0
    except BaseException:
        with open(writer, "w", encoding="utf-8", errors="replace") as pipe:
            pipe.write(traceback.format_exc())
    finally:
        os._exit(status)
