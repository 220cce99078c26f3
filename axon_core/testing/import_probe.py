"""A process that imports a plugin's modules and notes what that changes or does beside defining things.

Run as `python -m axon_core.testing.import_probe`, it imports torch once and then, for each line of JSON with `modules`,
`own` (the plugin's packages) and `path`, forks children that import the modules, and answers with a line of JSON. A
first child measures the time and finds out which libraries are imported; a second one imports these before it looks,
so that what libraries do is not held against the plugin. What a library does in C, without Python's audit events, is
not seen.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, cast

LONGEST = 120
"""Seconds after which an import is taken to hang."""
_PRELOADED = ("numpy", "pydantic", "axon_core.training.trainer", "axon_core.interfaces.model", "axon_core.nn.linear")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {
    **dict.fromkeys(("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"), "network"),
    **dict.fromkeys(("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"), "network"),
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec"), "started"),
    "pty.spawn": "started",
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink"), "files"),
    **dict.fromkeys(("os.truncate", "os.chmod", "os.utime", "tempfile.mkstemp", "tempfile.mkdtemp"), "files"),
}
"""Python's audit events that are effects, and the check that they break."""

Effects = dict[str, list[tuple[str, str]]]
"""By check: the module whose import had the effect, and the effect in words."""


def _state() -> dict[str, dict[str, str]]:
    """Return what an import must not change, by check and name; equal texts mean that nothing has changed."""
    import numpy
    import torch

    numbers = repr(random.getstate()), repr(numpy.random.get_state())
    handlers = {f"the handler of {s.name}": repr(signal.getsignal(s)) for s in signal.Signals if s in _SIGNALS}
    umask = os.umask(0)
    os.umask(umask)
    loggers = [logging.root, *(v for v in logging.root.manager.loggerDict.values() if isinstance(v, logging.Logger))]
    return {
        "torch_state": {
            "the default dtype": str(torch.get_default_dtype()),
            "the default device": str(torch.get_default_device()),
            "the number of threads": str((torch.get_num_threads(), torch.get_num_interop_threads())),
            "the grad mode": str((torch.is_grad_enabled(), torch.is_inference_mode_enabled())),
            "anomaly detection": str(torch.is_anomaly_enabled()),
            "deterministic algorithms": str(
                (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
            ),
            "the precision of float32 products": torch.get_float32_matmul_precision(),
            "the choice of cuDNN kernels": str((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)),
            "whether CUDA is initialised": str(torch.cuda.is_initialized()),
        },
        "random_state": {
            "torch's generator": sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:12],
            "Python's generator": sha256(numbers[0].encode()).hexdigest()[:12],
            "NumPy's generator": sha256(numbers[1].encode()).hexdigest()[:12],
        },
        "environment": {f"the variable {name}": repr(value) for name, value in os.environ.items()},
        "process_state": {
            "the working directory": os.getcwd(),
            "the umask": oct(umask),
            "the recursion limit": str(sys.getrecursionlimit()),
            "how NumPy treats errors": str(numpy.geterr()),
            "sys.excepthook": repr(sys.excepthook),
            "sys.stdout": repr(sys.stdout),
            "sys.stderr": repr(sys.stderr),
            **handlers,
        },
        "import_path": {
            "sys.path": repr(sys.path),
            "sys.meta_path": repr(sys.meta_path),
            "sys.path_hooks": repr(sys.path_hooks),
        },
        "warning_filters": {
            "the filters of warnings": repr(warnings.filters),
            "how warnings are shown": repr(warnings.showwarning),
        },
        "logging": {
            "the level of the root logger": str(logging.root.level),
            "which levels are disabled": str(logging.root.manager.disable),
            **{f"the handlers of the logger {each.name!r}": shown for each in loggers if (shown := _handlers(each))},
        },
    }


_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def _handlers(logger: logging.Logger) -> str:
    """Return a logger's handlers but for those that do nothing, which libraries are meant to add."""
    return ", ".join(repr(each) for each in logger.handlers if not isinstance(each, logging.NullHandler))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return in words how one state differs from another."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} is {_brief(after.get(name))}, and was {_brief(before.get(name))}" for name in names]


def _brief(value: str | None) -> str:
    return "not there" if value is None else value if len(value) <= 160 else f"{value[:100]}… ({len(value)} characters)"


class Watch:
    """Notes the audit events that are effects, for as long as `module` is set."""

    def __init__(self) -> None:
        self.module = ""
        self.effects: Effects = {}
        sys.addaudithook(self._heard)
        watch, start = self, threading.Thread.start

        def noted(self: threading.Thread) -> None:  # before Python 3.12 there is no event for it
            if watch.module:
                watch.note("started", f"it started the thread {self.name!r}")
            start(self)

        threading.Thread.start = noted

    def note(self, check: str, effect: str) -> None:
        """Note an effect of importing the current module."""
        self.effects.setdefault(check, []).append((self.module, effect))

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.module:
            return
        if event == "open":
            path, flags = cast("tuple[Any, Any, Any]", args)[::2]
            if isinstance(flags, int) and flags & _WRITES and isinstance(path, str | bytes | os.PathLike):
                name = os.fsdecode(cast("str | bytes", path))
                if name != os.devnull:
                    self.note("files", f"it opened {name!r} to write to it")
        elif check := _EVENTS.get(event):
            self.note(check, f"{event} {_brief(', '.join(map(_argument, args)))}".rstrip())


def _argument(value: Any) -> str:
    return repr(value) if isinstance(value, str | bytes | int | tuple | list) else getattr(value, "__name__", "…")


def _import(modules: Sequence[str]) -> dict[str, str]:
    """Import modules, and return the errors of those that cannot be imported."""
    failed: dict[str, str] = {}
    for module in modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            failed[module] = f"{type(error).__name__}: {error}"
    return failed


def _measure(modules: Sequence[str], own: Sequence[str]) -> dict[str, Any]:
    """Import the modules, and return the seconds of CPU time, the errors, and which libraries were imported."""
    before, begun = set(sys.modules), time.process_time()
    failed = _import(modules)
    seconds = time.process_time() - begun
    new = [name for name in sys.modules if name not in before and name.partition(".")[0] not in own]
    return {"seconds": seconds, "failed": failed, "libraries": new}


def _watch(modules: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    """Import libraries, then the modules one by one, and return the effects of these."""
    printed = _redirected()
    _import(libraries)
    watch = Watch()
    for module in modules:
        position, before = _printed(printed)[0], _state()
        watch.module = module
        _import([module])
        now = _state()
        for check, state in before.items():
            for change in changes(state, now[check]):
                watch.note(check, change)
        if text := _printed(printed)[1][position:]:
            watch.note("silent", f"it printed {_brief(text)!r}")
        watch.module = ""
    return {"effects": watch.effects}


def _redirected() -> Path:
    """Send both outputs, also of libraries in C, to a new file, and return it."""
    handle, name = tempfile.mkstemp(prefix="axon-import-")
    for number in (1, 2):
        os.dup2(handle, number)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", errors="replace", closefd=False) for n in (1, 2))
    return Path(name)


def _printed(file: Path) -> tuple[int, str]:
    """Return length and text of what has been printed."""
    for stream in (sys.__stdout__, sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    text = file.read_bytes().decode("utf-8", "replace")
    return len(text), text


def _in_child(path: Sequence[str], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `work` in a forked child, or how the child ended instead."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        if (pid := os.fork()) == 0:
            try:
                signal.alarm(LONGEST)
                sys.path[:], sys.dont_write_bytecode = path, True
                os.chdir(folder)
                result = json.dumps(work(), allow_nan=False)
                signal.alarm(0)
                answer.write_text(result)
            except BaseException:
                answer.with_suffix(".error").write_text(traceback.format_exc())
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if answer.exists():
            return cast("dict[str, Any]", json.loads(answer.read_text()))
        error = answer.with_suffix(".error")
        why = error.read_text().strip().splitlines()[-1] if error.exists() else f"with code {code}"
        hung = f"took more than {LONGEST} seconds" if code == -signal.SIGALRM else f"ended the process {why}"
        return {"ended": hung}


def _serve() -> None:
    begun = time.process_time()
    import_module("torch")
    torch_seconds = time.process_time() - begun
    _import(_PRELOADED)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        modules, own, path = asked["modules"], asked["own"], asked["path"]
        first = _in_child(path, lambda modules=modules, own=own: _redirected() and _measure(modules, own))
        result = {"torch_seconds": torch_seconds, **first}
        if "ended" not in first:
            libraries = first.pop("libraries")
            result |= _in_child(path, lambda modules=modules, libraries=libraries: _watch(modules, libraries))
        answers.write(json.dumps(result, allow_nan=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
