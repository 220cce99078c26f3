"""Allow-lists of shared machines: which plugins an administrator lets Axon load.

    # /etc/axon/plugins.toml
    [plugins]
    axon-kites = "*"                          # any version
    axon-balls = ["0.2.0", "0.2.1"]           # one of these
    axon-rings = "sha256:9f86d081884c7d65…"   # these files, as `axon lock` prints them

If there is such a file, plugins that it does not name are refused before any of their code runs; the core itself needs
no line. Environment variables cannot name another file, and can only leave out more plugins. A file that cannot be
trusted refuses all plugins. This is no sandbox: whoever runs Python can import what is installed without Axon.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from axon_core.registry.distributions import DIST_NAME, normalised_name

__all__ = ["AllowList", "allow_files", "judge", "read_allow_list"]

_CORE = "axon-core"
_DIGEST, _VERSION = re.compile(r"sha256:[0-9a-f]{64}"), re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_FORM = '"*", a version, or "sha256:" and 64 hexadecimal digits, or a list of these'


@dataclass(frozen=True)
class AllowList:
    """What one file allows."""

    file: Path
    """The file."""
    plugins: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """For each allowed plugin, `*`, or the versions and digests that are allowed."""
    unusable: str = ""
    """Why nothing is allowed although the file is there, or empty."""


def allow_files() -> list[Path]:
    """Return where allow-lists may be: of the machine, and of the Python environment. All that exist must allow."""
    # `PYTHONHOME` sets the prefix, but not where the interpreter is.
    prefixes = dict.fromkeys(os.path.abspath(p) for p in (sys.prefix, os.path.dirname(sys.executable or "") + "/.."))
    return list(dict.fromkeys(Path(root, "etc/axon/plugins.toml") for root in ("/", *prefixes)))


def read_allow_list(file: Path) -> AllowList | None:
    """Return what a file allows; nothing if it cannot be read, is malformed, or anyone may write to it; None if absent.

    Whatever is in the file, no error is raised.
    """
    try:
        if open_to := _open_to_all(file):
            return AllowList(file, unusable=f"anyone may write to {open_to} (chmod o-w {open_to})")
        from axon_core.documents import parse_toml  # here, because most machines have no such file

        return AllowList(file, _plugins(parse_toml(file.read_text("utf-8-sig"))))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not file.is_symlink():
            return None
        return AllowList(file, unusable=f"it cannot be read: {error.strerror}")
    except ValueError as error:
        return AllowList(file, unusable=f"it is malformed: {error}")


def _open_to_all(file: Path) -> str | None:
    """Return the file, or its folder, if everyone may write to it; a folder such as /tmp protects files of others."""
    if os.stat(file).st_mode & stat.S_IWOTH:
        return str(file)
    for folder in {file.parent, Path(os.path.realpath(file)).parent}:
        mode = os.stat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return str(folder)
    return None


def _plugins(tables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Check what a file says. Raises `ValueError` with the rule that it breaks."""
    if {*tables} != {"plugins"} or not isinstance(tables["plugins"], Mapping):
        raise ValueError(f"it must have the table [plugins] and nothing else, got {', '.join(tables) or 'nothing'}")
    found: dict[str, tuple[str, ...]] = {}
    for name, value in cast("Mapping[str, Any]", tables["plugins"]).items():
        if not re.fullmatch(DIST_NAME, name) or normalised_name(name) in found:
            raise ValueError(f"each line must name another distribution, got {name!r}")
        wanted = cast("list[Any]", value) if isinstance(value, list) and value else [value]
        for each in wanted:
            if not (isinstance(each, str) and (each == "*" or _DIGEST.fullmatch(each) or _VERSION.fullmatch(each))):
                raise ValueError(f"{name} must be {_FORM}, got {each!r}")
        found[normalised_name(name)] = tuple(wanted)
    return found


def judge(versions: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return which of the installed plugins are refused, with the reason and the remedy; and why files are unusable.

    Args:
        versions: the version of each plugin by its normalised name.
    """
    lists = [found for file in allow_files() if (found := read_allow_list(file)) is not None]
    refused: dict[str, str] = {}
    for name, version in versions.items():
        if reason := next((reason for found in lists if (reason := _refusal(found, name, version))), None):
            refused[name] = reason
    return refused, [f"{found.file} cannot be used: {found.unusable}" for found in lists if found.unusable]


def _refusal(found: AllowList, name: str, version: str) -> str | None:
    """Return why an allow-list refuses a plugin, and what to do; None if it does not."""
    if found.unusable and name != _CORE:
        return f"{found.file} cannot be used, so that it allows no plugin: {found.unusable}. Ask the administrator"
    wanted = found.plugins.get(name, ("*",) if name == _CORE else ())
    if "*" in wanted or version in wanted:
        return None
    is_digest = any(each.startswith("sha256:") for each in wanted)
    digest = _digest(name) if is_digest else ""
    if is_digest and digest in wanted:
        return None
    line = f'{name} = "{digest or version}"'
    here = f"its files are {digest}" if is_digest else f"it is {name} {version}"
    allows = f"allows only {', '.join(wanted)}, and {here}" if wanted else "does not name it"
    return f"{found.file} {allows}. Ask the administrator of this machine to put the line {line} there"


def _digest(name: str) -> str:
    """Return the digest of a plugin's files, or why there is none, which is like no digest."""
    from axon_core.registry.installed import files_digest, installed

    try:
        dist = installed(name)
        return "not installed" if dist is None else files_digest(dist)
    except Exception as error:  # whatever is in a folder, discovery goes on
        return f"unreadable ({type(error).__name__})"
