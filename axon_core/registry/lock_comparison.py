"""How what is installed differs from an environment lock, and how to restore what a run was made with."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Iterable
from pathlib import Path

from axon_core.errors import CheckpointError
from axon_core.registry.discovery import Problem, discover
from axon_core.registry.distributions import header
from axon_core.registry.environment_lock import (
    CORE,
    EnvironmentLock,
    LockedDistribution,
    LockedLibrary,
    LockedPart,
    find_lock,
    read_lock,
)
from axon_core.registry.installed import files_digest, installed, is_editable, record_digest
from axon_core.registry.suggest import known_papers

__all__ = ["lock_differences", "note_differences", "restoring_command"]

_log = logging.getLogger("axon")


def lock_differences(lock: EnvironmentLock, *, builds: bool = True) -> list[Problem]:
    """Return how what is installed differs from a lock, sorted by distribution; empty if a run would be made alike.

    Args:
        lock: what a run was made with.
        builds: whether the builds of libraries are compared too, which takes 20 ms more for torch.
    """
    found = [problem for locked in lock.distributions for problem in _distribution_differences(locked)]
    found += [problem for locked in lock.libraries for problem in _library_differences(locked, builds)]
    if (now := platform.python_version()).split(".")[:2] != lock.python.split(".")[:2]:
        minor = ".".join(lock.python.split(".")[:2])
        remedy = f"Make an environment of Python {minor}: python{minor} -m venv FOLDER"
        found.append(Problem("python", f"the lock has Python {lock.python}, and this is {now}", remedy))
    return sorted(found, key=lambda problem: problem.distribution)


def _distribution_differences(locked: LockedDistribution) -> Iterable[Problem]:
    if problem := _version_difference(locked):
        yield problem
        return
    dist = installed(locked.name)
    if dist is not None and files_digest(dist) != locked.files:
        what = f"{locked.name} {locked.version} is installed with other files than the lock has"
        remedy = f"Reinstall it: {_reinstall([locked])}"
        if is_editable(dist):
            remedy = (
                f"It is installed from a checkout: check out the commit that the run was made with. Or r{remedy[1:]}"
            )
        yield Problem(locked.name, what, remedy)
    for part in locked.parts:
        yield from _rivals(locked.name, part)


def _rivals(name: str, part: LockedPart) -> Iterable[Problem]:
    """Yield a problem for each other plugin that offers a part of this name: the bare name then finds neither."""
    for entry in discover().entries(part.group):
        if entry.key == part.key and entry.distribution != name:
            kind = part.group.replace("_", " ")
            what = f"{entry.source} offers the {kind} {part.key!r} too, which the run took from {name}"
            remedy = f"Uninstall it: pip uninstall {entry.distribution}; or write {name}:{part.key} in the recipe"
            yield Problem(entry.distribution, what, remedy)


def _library_differences(locked: LockedLibrary, builds: bool) -> Iterable[Problem]:
    if problem := _version_difference(locked):
        yield problem
    elif builds and locked.build is not None:
        dist = installed(locked.name)
        if dist is not None and (build := record_digest(dist)) is not None and build != locked.build:
            what = f"{locked.name} {locked.version} is another build of this version than the lock has"
            yield Problem(locked.name, what, f"Install it from where the run's was: {_reinstall([locked])}")


def _version_difference(locked: LockedDistribution | LockedLibrary) -> Problem | None:
    """Return what is wrong if a distribution is missing or has another version."""
    dist = installed(locked.name)
    version = None if dist is None else header(dist, "Version")
    if version == locked.version:
        return None
    state = "is not installed" if version is None else f"is installed in version {version}"
    what = f"the lock has {locked.name} {locked.version}, which {state}"
    remedy = f"Install it: {_reinstall([locked])}"
    if locked.name in {CORE, *(paper.distribution for paper in known_papers())}:
        folder = "." if locked.name == CORE else f"./plugins/{locked.name}"
        remedy += f", or in a checkout of Axon at that version: pip install {folder}"
    return Problem(locked.name, what, remedy)


def restoring_command(lock: EnvironmentLock, differences: Iterable[Problem]) -> str | None:
    """Return the `pip install` that restores whatever of a lock differs, or None if none would."""
    named = {problem.distribution for problem in differences}
    wanted = [locked for locked in (*lock.distributions, *lock.libraries) if locked.name in named]
    return _reinstall(wanted) if wanted else None


def _reinstall(wanted: Iterable[LockedDistribution | LockedLibrary]) -> str:
    """Return the command that installs exactly these versions; names and versions are safe in a shell."""
    wanted = list(wanted)
    local = {w.version.partition("+")[2] for w in wanted if w.name == "torch"} - {""}
    index = "".join(f" --extra-index-url https://download.pytorch.org/whl/{build}" for build in sorted(local))
    return f"pip install --force-reinstall --no-deps{index} {' '.join(f'{w.name}=={w.version}' for w in wanted)}"


def note_differences(folder: Path) -> None:
    """Warn in one line if what is installed differs from the lock of a run or model that is about to be used.

    Without a lock, nothing is said. Versions and the files of plugins are compared, but not the builds of libraries.
    """
    if (file := find_lock(folder)) is None:
        return
    try:
        found = lock_differences(read_lock(file), builds=False)
    except CheckpointError as error:
        _log.warning("%s; so what it was made with is not known", error)
        return
    if found:
        place = shlex.quote(str(file.parent))
        said = "; ".join(problem.what for problem in found[:3]) + (f"; and {len(found) - 3} more" if found[3:] else "")
        _log.warning("made with other software: %s. To restore it: axon doctor --lock %s", said, place)
