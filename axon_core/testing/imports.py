"""The checks of importing a plugin: it defines things, and does nothing else. They run in a process of their own."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel

from axon_core.config import validate
from axon_core.errors import UsageError
from axon_core.json_text import to_json
from axon_core.registry.discovery import Entry
from axon_core.registry.installed import installed, top_level
from axon_core.testing.kit import Broken, PartUnderTest, Suite

__all__ = ["SUITE", "ImportReport", "ImportedPlugin", "imported_plugin", "report_of"]

SLOWEST = 5.0
"""How many times as long as torch a plugin may take to be imported, with the libraries that it imports."""


class ImportReport(BaseModel):
    """What the import of a plugin's modules took and did."""

    torch_seconds: float
    """CPU time of importing torch, which every part needs."""
    seconds: float = 0.0
    """CPU time of importing the plugin's modules after that."""
    failed: dict[str, str] = {}
    """The modules that cannot be imported, with their errors."""
    effects: dict[str, list[tuple[str, str]]] = {}
    """By check: the module whose import had an effect, and the effect in words."""
    ended: str = ""
    """How an import ended the process, or empty."""


class ImportedPlugin:
    """What a plugin's import is checked on: `modules` to import, and its `own` packages, as options of the part."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ()


def imported_plugin(distribution: str, entries: Iterable[Entry]) -> PartUnderTest:
    """Return the modules that a distribution's entry points name, as a part of the kit."""
    modules = dict.fromkeys(entry.target.partition(":")[0].strip() for entry in entries)
    dist = installed(distribution)
    own = top_level(dist) if dist is not None else {name.partition(".")[0] for name in modules}
    options = {"modules": tuple(modules), "own": tuple(sorted(own))}
    return PartUnderTest(f"plugin:{distribution}", ImportedPlugin, options)


def report_of(part: PartUnderTest) -> ImportReport:
    """Import the modules of a part in a process of their own, once, and return what happened.

    Raises:
        UsageError: the process cannot be run.
    """
    modules = tuple(part.options["modules"])
    own = tuple(part.options.get("own") or (module.partition(".")[0] for module in modules))
    return _report(modules, own, tuple(sys.path))


@cache  # the checks of a plugin share one import
def _report(modules: tuple[str, ...], own: tuple[str, ...], path: tuple[str, ...]) -> ImportReport:
    server = _server()
    assert server.stdin and server.stdout
    try:
        server.stdin.write(to_json({"modules": modules, "own": own, "path": path}) + "\n")
        server.stdin.flush()
        return validate(ImportReport, json.loads(server.stdout.readline()))
    except (OSError, ValueError) as error:
        _server.cache_clear()
        raise UsageError(f"the process that imports plugins ended ({error}); run it again") from None


@cache  # it imports torch once for all plugins
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "axon_core.testing.import_probe"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def close() -> None:
        for pipe in (server.stdin, server.stdout):
            if pipe:
                pipe.close()
        server.wait()

    atexit.register(close)
    return server


SUITE = Suite(ImportedPlugin)


def _no_effect(part: PartUnderTest, check: str) -> None:
    """Raise `Broken` with the first effect of this kind."""
    for module, effect in report_of(part).effects.get(check, ()):
        raise Broken(f"importing {module}", effect)


@SUITE.check("a missing dependency, or code at the top of a module that raises an error or ends the process")
def imports(part: PartUnderTest) -> None:
    """Every module that its entry points name can be imported."""
    report = report_of(part)
    for module, error in report.failed.items():
        raise Broken(f"importing {module}", f"it raised {error}")
    if report.ended:
        raise Broken(f"importing {', '.join(part.options['modules'])}", f"it {report.ended}")


@SUITE.check("a `print`, or a warning, at the top of a module; use a logger in a function")
def silent(part: PartUnderTest) -> None:
    """Importing it prints nothing, on neither output."""
    _no_effect(part, "silent")


@SUITE.check("`torch.set_default_dtype`, `torch.set_num_threads` or a flag of a backend at the top of a module")
def torch_state(part: PartUnderTest) -> None:
    """Importing it leaves torch's default dtype and device, threads, grad mode and deterministic flags as they are."""
    _no_effect(part, "torch_state")


@SUITE.check("`manual_seed`, or a random tensor made at the top of a module; take a `torch.Generator` or a `Key`")
def random_state(part: PartUnderTest) -> None:
    """Importing it neither seeds nor draws from the generators of torch, NumPy and Python."""
    _no_effect(part, "random_state")


@SUITE.check("`os.environ[...] = ...` at the top of a module; pass the value to what needs it")
def environment(part: PartUnderTest) -> None:
    """Importing it sets and removes no environment variable."""
    _no_effect(part, "environment")


@SUITE.check("`os.chdir`, `signal.signal` or `np.seterr` at the top of a module; the program decides these")
def process_state(part: PartUnderTest) -> None:
    """Importing it leaves working directory, umask, signal handlers, outputs and limits of the process as they are."""
    _no_effect(part, "process_state")


@SUITE.check("`sys.path.insert` at the top of a module; install what it imports as a package")
def import_path(part: PartUnderTest) -> None:
    """Importing it leaves `sys.path` and the finders of modules as they are."""
    _no_effect(part, "import_path")


@SUITE.check("`warnings.filterwarnings` at the top of a module; use `warnings.catch_warnings` where it is needed")
def warning_filters(part: PartUnderTest) -> None:
    """Importing it leaves the filters of warnings as they are."""
    _no_effect(part, "warning_filters")


@SUITE.check("`logging.basicConfig`, or a handler added at the top of a module; the program decides where logs go")
def logging(part: PartUnderTest) -> None:
    """Importing it adds no handler to a logger, but `NullHandler`, and changes no level of the root logger."""
    _no_effect(part, "logging")


@SUITE.check("a thread, pool or subprocess that is started at the top of a module; start it when it is first needed")
def started(part: PartUnderTest) -> None:
    """Importing it starts no thread and no process."""
    _no_effect(part, "started")


@SUITE.check("a download or a look-up of a host at the top of a module; nothing is fetched at run time")
def network(part: PartUnderTest) -> None:
    """Importing it opens no connection and looks up no host."""
    _no_effect(part, "network")


@SUITE.check("a cache, log or temporary file that is made at the top of a module; write when it is needed")
def files(part: PartUnderTest) -> None:
    """Importing it writes, moves and removes no file."""
    _no_effect(part, "files")


@SUITE.check("a large library that is imported at the top of a module, or a table computed there; do it when needed")
def import_time(part: PartUnderTest) -> None:
    """Importing it, with the libraries that it imports, takes at most five times as long as importing torch."""
    report = report_of(part)
    if report.seconds > SLOWEST * report.torch_seconds:
        found = f"{report.seconds:.1f} s of CPU time, and torch {report.torch_seconds:.1f} s"
        raise Broken(f"importing {', '.join(part.options['modules'])}", found)
