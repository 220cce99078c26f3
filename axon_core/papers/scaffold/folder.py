"""Where a new plugin goes, and writing it there: completely, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from axon_core.checkpoint.atomic import claimed_folder, whole_folder
from axon_core.documents import parse_toml
from axon_core.errors import UsageError

__all__ = ["place", "write"]


def place(distribution: str, out: Path | None, here: Path) -> tuple[Path, bool]:
    """Return the folder of a new plugin, and whether it stands alone rather than among the plugins of a repository.

    Without `out` it is `plugins/<distribution>` in the repository that `here` lies in, or `here/<distribution>`.

    Raises:
        UsageError: something is there already, or the folder that is to hold it is not there.
    """
    if out is not None:
        path = Path(os.path.abspath(here / out))
        target = path.parent.resolve() / path.name  # not the link itself: where it dangles it is there all the same
        plugins = _plugins(target.parent)
    else:
        plugins = _plugins(here)
        target = (plugins or here) / distribution
    if os.path.lexists(target):
        raise UsageError(f"nothing is overwritten, and there is already {target}; choose another folder with --out")
    if not target.parent.is_dir():
        raise UsageError(f"a plugin is put into a folder that exists, got {target.parent}; make that folder first")
    return target, target.parent != plugins


def write(files: Mapping[str, str], target: Path) -> None:
    """Write `files`, by their paths within it, to the new folder `target`; whatever goes wrong leaves nothing there.

    Raises:
        UsageError: something is there already, or another process makes it just now.
        CheckpointError: the place cannot be written to.
    """
    with claimed_folder(target), whole_folder(target) as temporary:
        for path, text in files.items():
            file = temporary / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")


def _plugins(folder: Path) -> Path | None:
    """Return the folder of plugins of Axon's repository that `folder` lies in, if it lies in one."""
    for parent in (folder, *folder.parents):
        try:
            project = parse_toml((parent / "pyproject.toml").read_text(encoding="utf-8-sig")).get("project", {})
        except (OSError, ValueError):
            continue
        if project.get("name") == "axon-core" and (parent / "plugins").is_dir():
            return parent / "plugins"
    return None
