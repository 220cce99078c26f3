"""A run's lock: written when the run begins, or later if what `run.json` says of it agrees with what is installed."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from axon_core import CheckpointError, to_json
from axon_core.checkpoint import write_text
from axon_core.registry import LOCK, EnvironmentLock, lock_differences, lock_environment, named_plugins, read_lock
from axon_core.training import RunFolder

__all__ = ["late_lock", "lock_text", "write_lock_at_start"]


def lock_text(lock: EnvironmentLock) -> str:
    """Return a lock as the JSON of its file; equal locks have equal texts."""
    return to_json(lock.model_dump(mode="json"), indent=1) + "\n"


def write_lock_at_start(run: RunFolder, step: int) -> Path | None:
    """Write the lock of a run that begins at `step`, and return its file; None if the run has it already.

    A run that is resumed keeps its `lock.json`. If what is installed differs from that, the new lock is
    `lock-step-<n>.json`: from this step on, the run was made with it.

    Raises:
        CheckpointError: it cannot be written, or the lock that is there is damaged.
    """
    file = run.path / LOCK
    if file.exists():
        if not lock_differences(read_lock(file)):
            return None
        file = run.path / f"lock-step-{step}.json"
    write_text(file, lock_text(_lock(run, at_start=step == 0 or file.name != LOCK)))
    return file


def late_lock(run: RunFolder) -> EnvironmentLock:
    """Return the lock of a run that has none, made now.

    It describes what is installed now, so it is refused unless the versions that `run.json` recorded agree. Whether the
    files behind these versions are still the same is not known.

    Raises:
        CheckpointError: a version differs, or a plugin that took part is not installed.
    """
    facts = run.facts
    recorded = {**facts.get("versions", {}), **{p["distribution"]: p["version"] for p in facts.get("parts", ())}}
    here = {name: _version(name) for name in recorded if not name.startswith("(")}
    recorded["Python"], here["Python"] = facts.get("hardware", {}).get("python"), platform.python_version()
    other = [
        f"{name} {recorded[name]} (now {version or 'not installed'})"
        for name, version in sorted(here.items())
        if recorded[name] != version
    ]
    if other:
        raise CheckpointError(
            f"{run.path} was made with {', '.join(other)}, so a lock of what is installed now would not be true of it. "
            "Install these versions first, or train again: a run gets its lock when it begins"
        )
    return _lock(run, at_start=False)


def _lock(run: RunFolder, *, at_start: bool) -> EnvironmentLock:
    facts = run.facts
    others = named_plugins([facts.get("recipe"), facts.get("trainer")])
    return lock_environment(facts.get("parts", ()), others, at_start=at_start)


def _version(name: str) -> str | None:
    if name == "torch":
        import torch

        return str(torch.__version__)  # which run.json has
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
