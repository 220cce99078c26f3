"""Discovery: the entry points of installed plugins as `Entry` records, read from metadata without importing anything.

A plugin declares what it offers in groups named `axon.v1.<group>`:

    [project.entry-points."axon.v1.attention"]
    mine = "my_package.attention:MyAttention"

Only loading an entry runs the plugin's code; listing never does.
"""

from __future__ import annotations

import os
import re
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

from axon_core.errors import PluginLoadError
from axon_core.escaping import shortened
from axon_core.registry.allowed import judge
from axon_core.registry.distributions import DIST_NAME, header, is_whole, normalised_name

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "API",
    "DIST_NAME",
    "GROUPS",
    "Discovered",
    "Entry",
    "Problem",
    "discover",
    "forget",
    "load_problem",
    "normalised_name",
    "scan",
]

API = "axon.v1"
"""Prefix of every group read: the major version of the plugin interface this core speaks."""

GROUPS = (
    *("attention", "rotary_embedding", "norm", "model", "trainer", "chat_template"),
    *("quantization", "optimizer", "weight_decay", "recipe_section"),
    *("paper", "command", "hooks", "registry"),
)
"""The core's own groups; a plugin adds one by naming a registry of its own in group `registry`."""

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(\s*:\s*[^\W\d]\w*(\.[^\W\d]\w*)*)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing a distribution offers under a key of a group, known without importing it."""

    key: str
    """The name it is looked up by."""
    distribution: str
    """Normalised name of the distribution that offers it."""
    version: str
    """Version of that distribution."""
    target: str
    """Where it lives, `"package.module:Name"`."""
    group: str
    """What kind of thing it is: `"attention"`, `"norm"`, …"""

    @property
    def qualified(self) -> str:
        """The key no other distribution can claim, `"distribution:key"`."""
        return f"{self.distribution}:{self.key}"

    @property
    def source(self) -> str:
        """Distribution and version, for messages and provenance."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> Any:
        """Import the target and return the object. Raises `PluginLoadError` if the plugin's code cannot be run."""
        module, _, attributes = self.target.replace(" ", "").partition(":")
        try:
            return reduce(getattr, filter(None, attributes.split(".")), import_module(module))
        except (Exception, SystemExit) as error:  # a plugin may raise anything; Ctrl-C still passes
            problem = load_problem(self, error)
            raise PluginLoadError(f"{problem.what}. {problem.remedy}. Other plugins are not affected") from error


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in the environment, and what to do about it."""

    distribution: str
    """The distribution it concerns, as far as that is known."""
    what: str
    """What is wrong."""
    remedy: str
    """What to do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", shortened(self.what, 1_000))  # it may quote a name as long as a file

    def __str__(self) -> str:
        return f"{self.distribution}: {self.what}. {self.remedy}."


def load_problem(entry: Entry, error: BaseException) -> Problem:
    """Say why importing the target of `entry` raised `error`, and what to do."""
    module = entry.target.partition(":")[0].strip()
    cause = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    # Without the frame of `load` itself, and those of the import system.
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    repair = f"upgrade {entry.distribution}, or report this to its authors"
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        if f"{module}.".startswith(f"{error.name}."):
            repair, where = f"reinstall it: pip install --force-reinstall {entry.distribution}", ""
        else:
            repair = f"install what provides the module {error.name!r}"
    kind = entry.group.replace("_", " ")
    return Problem(
        entry.distribution,
        f"the {kind} {entry.key!r} of {entry.source} cannot be loaded: importing {entry.target} raised {cause}{where}",
        f"To repair it, {repair}; to leave it out, set AXON_DISABLE_PLUGINS={entry.distribution}",
    )


@dataclass(frozen=True)
class Discovered:
    """What one scan of the environment found."""

    groups: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict[str, tuple[Entry, ...]])
    """Entries by group, sorted by key and distribution."""
    disabled: tuple[Entry, ...] = ()
    """Entries that AXON_PLUGINS, AXON_DISABLE_PLUGINS or an administrator's allow-list left out."""
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """The distributions that an allow-list refuses, each with the reason (`axon_core.registry.allowed`)."""
    problems: tuple[Problem, ...] = ()
    """What could not be used, and why."""

    def entries(self, group: str) -> tuple[Entry, ...]:
        """Return the entries of `group`, sorted by key and distribution."""
        return self.groups.get(group, ())

    @property
    def served(self) -> frozenset[str]:
        """The groups that the core or an installed plugin reads."""
        return frozenset({*GROUPS, *(entry.key for entry in self.entries("registry"))})


_lock = threading.Lock()
_found: Discovered | None = None


def discover() -> Discovered:
    """Return what is installed, scanned once per process, on first use."""
    global _found
    if (found := _found) is None:
        import_module("importlib.metadata")  # here, because the lock below is never held during an import
        with _lock:
            if (found := _found) is None:
                found = _found = scan()
    return found


def forget() -> None:
    """Make the next `discover` scan again; `axon_core.refresh` also tells the registries."""
    global _found
    with _lock:
        _found = None


def scan(*, thorough: bool = False) -> Discovered:
    """Read the entry points of every distribution on `sys.path`, one by one, so that a broken one affects no other.

    `thorough` also examines the distributions that have nothing to do with Axon.
    """
    from importlib import metadata

    entries: list[Entry] = []
    problems: list[Problem] = []
    copies: dict[str, dict[str, Distribution]] = {}  # by name and metadata folder, in the order of sys.path
    for dist in metadata.distributions():
        folder = str(getattr(dist, "_path", ""))  # no public name for it; only needed for messages and duplicates
        name = normalised_name(os.path.basename(folder).rpartition(".")[0].partition("-")[0])
        copies.setdefault(name, {}).setdefault(folder, dist)
    for name, found in copies.items():
        used = _used(found)
        for folder, dist in found.items():
            try:
                points = [point for point in dist.entry_points if point.group.startswith("axon.")]
                if folder == used:
                    if points or thorough:
                        _examine(dist, name, folder, points, entries, problems)
                elif os.path.realpath(used) != os.path.realpath(folder):
                    if not is_whole(dist):
                        problems.append(_hollow(name, folder))
                    elif points:
                        problems.append(_duplicate(name, used, folder))
            except Exception as error:
                problems.append(_unreadable(dist, name, folder, error))
                os.environ.update(_UNPLUGGED)
    return _sorted_out(entries, problems)


def _used(copies: Mapping[str, Distribution]) -> str:
    """Return the folder of the copy in use: the first on `sys.path`, as in an import, that has its metadata."""
    first = next(iter(copies))
    return first if len(copies) == 1 else next((folder for folder, dist in copies.items() if is_whole(dist)), first)


# A file that importlib.metadata cannot parse breaks every call of its `entry_points`, which torch and pydantic call
# on import. These keep them from calling it when it could not work anyway, so that plugins still load.
_UNPLUGGED = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYDANTIC_DISABLE_PLUGINS": "__all__"}


def _examine(
    dist: Distribution,
    name: str,
    folder: str,
    points: Iterable[EntryPoint],
    entries: list[Entry],
    problems: list[Problem],
) -> None:
    """Add the Axon entry points of one distribution to `entries`, and what is wrong with it to `problems`."""
    if folder and not re.fullmatch(DIST_NAME, name):
        remedy = f"Delete the folder {folder}"
        problems.append(Problem(name, f"{folder} is left over from an interrupted pip run", remedy))
        return
    if (version := header(dist, "Version")) is None or not (name := name or header(dist, "Name") or ""):
        problems.append(_hollow(name, folder))
        return
    seen: set[tuple[str, str]] = set()
    for point in points:
        group = point.group.removeprefix(f"{API}.")
        spot = shortened(f"[{point.group}] {point.name} = {point.value!r}", 200)
        edit = f"Correct the entry points of {name} and reinstall it"
        if group == point.group:
            what = f"{spot} is not for {API}, the plugin interface of this axon-core; it is not used"
            remedy = f"Install the {name} made for {API}, or the axon-core that reads its group"
            problems.append(Problem(name, what, remedy))
        elif not _REFERENCE.fullmatch(point.value):
            problems.append(Problem(name, f"{spot} is not an object reference such as 'package.module:Name'", edit))
        elif ":" in point.name:
            problems.append(Problem(name, f"{spot} has a ':' in its key, which qualified names reserve", edit))
        elif (group, point.name) in seen:
            problems.append(Problem(name, f"{spot} repeats a key; only the first one is used", edit))
        else:
            seen.add((group, point.name))
            entries.append(Entry(point.name, name, version, point.value, group))


def _hollow(name: str, folder: str) -> Problem:
    what = f"{folder} has no METADATA, as after an interrupted install or uninstall; nothing it offers is used"
    return Problem(name, what, f"Reinstall it (pip install --force-reinstall {name}) or delete that folder")


def _duplicate(name: str, used: str, folder: str) -> Problem:
    what = f"it is installed twice: {used} is used and {folder} is not"
    return Problem(
        name, what, f"Uninstall it until pip finds no further copy (pip uninstall {name}), then install it once"
    )


def _unreadable(dist: Distribution, name: str, folder: str, error: Exception) -> Problem:
    """Say which file of a distribution cannot be read, and the first line that breaks it."""
    file, why = os.path.join(folder, "entry_points.txt"), f"cannot be read ({type(error).__name__}: {error})"
    try:
        section = False
        for number, line in enumerate(map(str.strip, (dist.read_text("entry_points.txt") or "").splitlines()), 1):
            heading = line.startswith("[") and line.endswith("]")
            section = section or heading
            if not (heading or line.startswith("#") or not line or (section and "=" in line and line[0] != "[")):
                why = f"is malformed: line {number} is {shortened(repr(line), 200)}"
                break
    except (OSError, UnicodeDecodeError):
        pass  # then the error that brought us here says why
    remedy = f"Reinstall it (pip install --force-reinstall {name}), or report this to its authors"
    return Problem(name, f"{file} {why}; nothing it offers is used", remedy)


def _sorted_out(entries: list[Entry], problems: list[Problem]) -> Discovered:
    """Apply the allow-lists, AXON_PLUGINS and AXON_DISABLE_PLUGINS; note entries in groups that nothing reads."""
    installed = {e.distribution for e in entries} | {p.distribution for p in problems}
    allowed, refused = _names("AXON_PLUGINS"), _names("AXON_DISABLE_PLUGINS")
    problems = [p for p in problems if p.distribution not in refused]
    for variable, names in (("AXON_PLUGINS", allowed), ("AXON_DISABLE_PLUGINS", refused)):
        for name in sorted(names - installed):
            what = f"{variable} names it, but no plugin with that name is installed"
            problems.append(Problem(name, what, f"Correct {variable}; installed: {', '.join(sorted(installed))}"))

    forbidden, unusable = judge({entry.distribution: entry.version for entry in entries})
    for what in unusable:
        remedy = "Ask the administrator of this machine to correct it; until then no plugin is used"
        problems.append(Problem("allow-list", what, remedy))
    groups: dict[str, list[Entry]] = {}
    disabled: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.key, e.distribution)):
        off = entry.distribution in {*refused, *forbidden} or (allowed and entry.distribution not in allowed)
        (disabled if off else groups.setdefault(entry.group, [])).append(entry)
    found = Discovered({g: tuple(e) for g, e in groups.items()}, tuple(disabled), forbidden, tuple(problems))
    for group in sorted(groups.keys() - found.served):
        for entry in groups[group]:
            if _is_optional(entry):
                continue
            what = f"{entry.key!r} is in group {API}.{group}, which nothing reads"
            remedy = f"Use one of {', '.join(sorted(found.served))}, or install the plugin that defines that group"
            problems.append(Problem(entry.distribution, what, remedy))
    return replace(found, problems=tuple(problems))


def _is_optional(entry: Entry) -> bool:
    """Whether the distribution has an extra of the group's name, which installs what reads the group."""
    from importlib.metadata import metadata

    try:
        extras = metadata(entry.distribution).get_all("Provides-Extra") or []
    except Exception:  # damaged metadata, which is told elsewhere
        return False
    return normalised_name(entry.group) in map(normalised_name, extras)


def _names(variable: str) -> set[str]:
    """The distributions an environment variable lists."""
    return {normalised_name(name) for name in os.environ.get(variable, "").split(",") if name.strip()}
