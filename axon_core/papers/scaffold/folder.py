"""Chooses the folder of a new plugin, and writes the plugin completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from axon_core.checkpoint.atomic import atomic_folder, claimed_folder
from axon_core.documents import parse_toml
from axon_core.errors import UsageError

__all__ = ["plugin_folder", "write"]


def plugin_folder(distribution: str, out: Path | None, here: Path) -> tuple[Path, bool]:
    """Return the folder of a new plugin, and whether it is standalone rather than among the plugins of a repository.

    Without `out` it is `plugins/<distribution>` in the repository that contains `here`, or else `here/<distribution>`.

    Raises:
        UsageError: the folder exists already, or its parent folder does not exist.
    """
    if out is not None:
        path = Path(os.path.abspath(here / out))
        target = path.parent.resolve() / path.name  # the last part is not resolved: a dangling link exists, too
        plugins = _plugins(target.parent)
    else:
        plugins = _plugins(here)
        target = (plugins or here) / distribution
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already, and nothing is overwritten; choose another folder with --out")
    if not target.parent.is_dir():
        raise UsageError(f"the parent folder must exist, got {target.parent}; create it first")
    return target, target.parent != plugins


def write(files: Mapping[str, str], target: Path) -> None:
    """Write `files`, by their relative paths, to the new folder `target`; an error leaves nothing behind.

    Raises:
        UsageError: the folder exists already, or another process is creating it.
        CheckpointError: the folder cannot be written.
    """
    with claimed_folder(target), atomic_folder(target) as temporary:
        for path, text in files.items():
            file = temporary / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")


def _plugins(folder: Path) -> Path | None:
    """Return the folder `plugins` of the Axon repository that contains `folder`, or None outside of one."""
    for parent in (folder, *folder.parents):
        try:
            project = parse_toml((parent / "pyproject.toml").read_text(encoding="utf-8-sig")).get("project", {})
        except (OSError, ValueError):
            continue
        if project.get("name") == "axon-core" and (parent / "plugins").is_dir():
            return parent / "plugins"
    return None
