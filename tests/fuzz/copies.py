"""Copies of folders that are made again and again, at the cost of what has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def clear(folder: Path, keep: str = "") -> None:
    """Make `folder` be there, and hold nothing but perhaps what is named `keep`."""
    folder.mkdir(exist_ok=True)
    for entry in os.scandir(folder):
        if entry.name != keep:
            _remove(entry)


def copy(source: Path, target: Path) -> None:
    """Make `target` a copy of the folder `source`; files that have its size, time and mode are taken for the same."""
    target.mkdir(exist_ok=True)
    there = {entry.name: entry for entry in os.scandir(target)}
    for entry in os.scandir(source):
        old = there.pop(entry.name, None)
        if old and _kind(old) != _kind(entry):
            _remove(old)
            old = None
        if entry.is_dir():
            copy(source / entry.name, target / entry.name)
        elif not old or _facts(old) != _facts(entry):
            shutil.copy2(entry.path, target / entry.name)
    for entry in there.values():
        _remove(entry)


def _facts(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    found = entry.stat(follow_symlinks=False)
    return found.st_size, found.st_mtime_ns, found.st_mode


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    return entry.is_dir(follow_symlinks=False), entry.is_symlink()


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        os.unlink(entry.path)
