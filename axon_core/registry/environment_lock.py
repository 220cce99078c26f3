"""Environment locks: which distributions a run was made with, and what differs from them now.

A lock is a file `lock.json` beside `run.json`. It has name, version and digest of the files (`files_digest`) of Axon's
core and of every plugin that took part, and name, version and build (`record_digest`) of the libraries they compute
with. It has nothing to do with the locks that keep two processes from writing to one folder.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from axon_core.config import Config, validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError
from axon_core.escaping import shortened
from axon_core.registry.discovery import discover
from axon_core.registry.distributions import DIST_NAME, header, normalised_name
from axon_core.registry.installed import files_digest, installed, record_digest, requirements

__all__ = [
    "CORE",
    "LOCK",
    "EnvironmentLock",
    "LockedDistribution",
    "LockedLibrary",
    "LockedPart",
    "find_lock",
    "installed_plugins",
    "is_by_hand",
    "lock_environment",
    "named_plugins",
    "read_lock",
]

LOCK = "lock.json"
"""The name of a lock in a run folder."""
FORMAT = 1
"""The format written here, and the newest that is read."""
CORE = "axon-core"
"""The distribution of the core."""
_DEVELOPMENT = {"test", "tests", "docs", "bench", "dev", "lint"}  # extras that no run needs
_WITHOUT_NUMBERS = {  # libraries that check, print, draw, log, transfer or serve
    *("click", "entrypoints", "jaxtyping", "pluggy", "pydantic", "rich", "tomli-w", "matplotlib", "tensorboard"),
    *("wandb", "huggingface-hub", "gradio", "prometheus-client", "starlette", "uvicorn", "httpx"),
}

_Name = Annotated[str, Field(pattern=rf"^{DIST_NAME}$", max_length=200)]
_Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$", max_length=200)]
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class LockedPart(Config):
    """A part that took part in a run."""

    group: str
    """Its registry's group, such as `attention`."""
    key: str
    """The name it is looked up by."""


class LockedDistribution(Config):
    """Axon's core, or a plugin: all of its files are checked."""

    name: _Name
    """Its name, normalised."""
    version: _Version
    """Its version."""
    files: _Digest
    """The digest of its files (`files_digest`)."""
    parts: tuple[LockedPart, ...] = ()
    """Which of its parts took part."""


class LockedLibrary(Config):
    """A library that plugins compute with: its version and build are checked, and its files are not read."""

    name: _Name
    """Its name, normalised."""
    version: _Version
    """Its version."""
    build: _Digest | None = None
    """What its wheel held (`record_digest`); None if its installer left no checksums."""


class EnvironmentLock(Config):
    """Which distributions a run was made with."""

    format: Literal[1] = FORMAT
    """The version of this format."""
    at_start: bool
    """Whether it was written when the run began; otherwise later, when the versions in `run.json` agreed."""
    python: _Version
    """The version of Python."""
    distributions: tuple[LockedDistribution, ...]
    """Axon's core and the plugins, sorted by name."""
    libraries: tuple[LockedLibrary, ...]
    """The libraries that they require and compute with, sorted by name."""
    by_hand: tuple[str, ...] = ()
    """Parts that were registered in the session, such as `attention MINE`, of which no installation has the code."""


def lock_environment(
    parts: Iterable[Mapping[str, str]], others: Iterable[str] = (), *, at_start: bool
) -> EnvironmentLock:
    """Return the lock of what is installed now, for a run with these `parts` (`provenance.parts_of`).

    It has the core, the distributions of the parts, the `others`, and the plugins that any of them requires.

    Raises:
        CheckpointError: one of these is not installed.
    """
    parts = list(parts)
    plugins = installed_plugins()
    names = [CORE, *others, *(part["distribution"] for part in parts if not is_by_hand(part))]
    libraries, distributions = set[str](), dict[str, LockedDistribution]()
    while names:
        if (name := normalised_name(names.pop())) in distributions:
            continue
        if (dist := installed(name)) is None:
            raise CheckpointError(f"{name} took part in the run and is not installed: pip install {name}")
        mine = sorted({(part["group"], part["key"]) for part in parts if part["distribution"] == name})
        distributions[name] = LockedDistribution(
            name=name,
            version=header(dist, "Version") or "",
            files=files_digest(dist),
            parts=tuple(LockedPart(group=group, key=key) for group, key in mine),
        )
        needed = requirements(dist)
        names += needed.keys() & plugins
        libraries |= {library for library, extra in needed.items() if extra not in _DEVELOPMENT}
    return EnvironmentLock(
        at_start=at_start,
        python=platform.python_version(),
        distributions=tuple(distributions[name] for name in sorted(distributions)),
        libraries=tuple(
            LockedLibrary(name=name, version=header(dist, "Version") or "", build=record_digest(dist))
            for name in sorted(libraries - plugins - _WITHOUT_NUMBERS)
            if (dist := installed(name)) is not None
        ),
        by_hand=tuple(sorted({f"{part['group']} {part['key']}" for part in parts if is_by_hand(part)})),
    )


def installed_plugins() -> set[str]:
    """Return the distributions that offer anything to Axon, the core and those that are left out among them."""
    found = discover()
    entries = [*found.disabled, *(entry for entries in found.groups.values() for entry in entries)]
    return {CORE, *(entry.distribution for entry in entries)}


def named_plugins(facts: Any) -> set[str]:
    """Return the distributions of the parts that the tables of a recipe name, such as losses, rewards and optimisers.

    `provenance.parts_of` finds what a model consists of, and this the rest: each `type` of a table, and each field
    that is called like a registry's group.
    """
    named = set(_named(facts))
    offers: dict[tuple[str, str], set[str]] = {}
    for group, entries in discover().groups.items():
        for entry in entries if group not in ("paper", "command", "hooks", "registry") else ():
            for place, key in ((p, k) for p in ("type", group) for k in (entry.key, entry.qualified)):
                offers.setdefault((place, key), set()).add(entry.distribution)
    return {name for spot in named & offers.keys() for name in offers[spot]}


def _named(facts: Any) -> Iterable[tuple[str, str]]:
    """Yield field and text wherever a field of tables has a text."""
    if isinstance(facts, Mapping):
        for field, value in cast("Mapping[str, Any]", facts).items():
            yield from [(field, value)] if isinstance(value, str) else _named(value)
    elif isinstance(facts, list | tuple):
        for value in cast("list[Any]", facts):
            yield from _named(value)


def is_by_hand(part: Mapping[str, str]) -> bool:
    """Whether a part was registered in its session, and so is in no distribution."""
    return part["distribution"].startswith("(")  # "(this session)", which no distribution can be called


def find_lock(folder: Path) -> Path | None:
    """Return the lock of a run or of a model in it: in the folder, or in the run folder that it is part of; or None."""
    if (folder / LOCK).is_file():
        return folder / LOCK
    above = list(folder.absolute().parents)[:3]  # run/model, and run/checkpoints/step-9/model
    return next((place / LOCK for place in above if (place / LOCK).is_file() and (place / "run.json").is_file()), None)


def read_lock(path: Path) -> EnvironmentLock:
    """Return the lock in a file, or that of a run's or model's folder.

    Raises:
        CheckpointError: there is none; or it is damaged, or of a format that this version of Axon does not know.
    """
    file = find_lock(path) if path.is_dir() else path
    if file is None:
        raise CheckpointError(f"{path} has no {LOCK}; a run gets one when it begins if a plugin writes locks")
    try:
        facts: Any = parse_json(file.read_text("utf-8-sig"))
        if isinstance(facts, dict) and isinstance(found := facts.get("format"), int) and found > FORMAT:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            raise CheckpointError(
                f"{file} is of format {found}, and this axon-core reads formats up to {FORMAT}; upgrade axon-core"
            )
        return validate(EnvironmentLock, facts)
    except FileNotFoundError:
        raise CheckpointError(f"there is no lock {file}; give a run folder or its {LOCK}") from None
    except (ConfigError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged or not a lock: {shortened(str(error), 1000)}") from None
