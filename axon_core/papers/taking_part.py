"""What a claim is measured with: the machine, and the installed distributions that take part."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import PositiveInt

from axon_core.config import Config
from axon_core.registry.discovery import normalised_name

__all__ = ["MeasuredWith", "current_machine", "distributions_of"]

_EXTRA = re.compile(r"\bextra\s*==")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MeasuredWith(Config):
    """The machine and the distributions with which claims were measured."""

    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""
    platform: str
    """Operating system and architecture: `Linux x86_64`."""
    processor: str
    """Model of the processor."""
    cores: PositiveInt
    """Number of cores that the process may use; a check computes on one thread."""
    packages: dict[str, str]
    """Version of every distribution that took part, by its name."""


def current_machine(distributions: dict[str, str]) -> MeasuredWith:
    """Return this machine, with the versions of the `distributions` that take part."""
    return MeasuredWith(
        python=platform.python_version(),
        torch=metadata.version("torch"),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages=dict(sorted(distributions.items())),
    )


def distributions_of(distribution: str) -> dict[str, str]:
    """Return the installed distributions that take part in what `distribution` computes, with their versions.

    These are axon-core, itself, what they require, and so on; of the extras, its own that are installed.
    """
    found: dict[str, str] = {}
    waiting = ["axon-core", distribution]
    while waiting:
        name = normalised_name(waiting.pop())
        if name in found or (version := _version(name)) is None:
            continue
        found[name] = version
        waiting += _required(name, extras=name == normalised_name(distribution) != "axon-core")
    return dict(sorted(found.items()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _required(name: str, *, extras: bool) -> list[str]:
    """Return the names of the distributions that one requires; those for another system are not installed."""
    lines = metadata.requires(name) or []
    return [match[0] for line in lines if (extras or not _EXTRA.search(line)) and (match := _NAME.match(line))]


@cache
def _processor() -> str:
    """Return the model of the processor, as the system names it."""
    try:
        listed = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        listed = ""
    found = re.search(r"^model name\s*:\s*(.+)$", listed, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
