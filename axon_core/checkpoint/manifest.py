"""The manifest of a folder: the SHA-256 of its files, which reveals files changed after they were written.

Without a manifest nothing is checked. To change a file on purpose, remove the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from axon_core.checkpoint.atomic import (
    TREE,
    atomic_folder,
    claimed_file,
    make_folder,
    remove_leftovers,
    write_text,
    writing,
)
from axon_core.checkpoint.shard_names import missing_shard
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError
from axon_core.json_text import to_json

__all__ = [
    "MANIFEST",
    "add_to_manifest",
    "check_folder",
    "claimed_files",
    "new_folder",
    "read_checked",
    "sha256",
    "sums",
    "verify",
    "verify_together",
    "write_manifest",
]

MANIFEST = "manifest.json"
"""The name of the file."""


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sums(folder: Path) -> dict[str, str]:
    """Return the checksums in a folder's manifest, by the files' paths in it; none if it has no manifest.

    Raises:
        CheckpointError: the manifest cannot be read.
    """
    try:
        found = parse_json((folder / MANIFEST).read_text(encoding="utf-8-sig"))["sha256"]
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError("it has no checksums")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (KeyError, TypeError, ValueError, OSError, RecursionError):
        raise CheckpointError(
            f"{folder / MANIFEST} is unreadable, so the files beside it cannot be verified; restore it, or remove it "
            "to use them as they are"
        ) from None
    return cast(dict[str, str], found)


@contextmanager
def claimed_files(folder: Path, *names: str) -> Generator[None]:
    """Claim, for the block, files of a folder that its manifest is to name; the folder is made if there is none.

    Leftovers of a killed process are removed. One process at a time adds files to a folder.

    Raises:
        CheckpointError: the folder cannot be written to.
        UsageError: another process adds files to it; the message names that process.
    """
    with writing(folder):
        make_folder(folder)
    with claimed_file(folder / MANIFEST):
        with writing(folder):
            for name in names:
                remove_leftovers(folder, name)
        yield


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of all files in a folder and below it; checksums that are `known` are not computed again."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    names = {file.relative_to(folder).as_posix(): file for file in files}
    _write(folder, {name: (known or {}).get(name) or sha256(file) for name, file in names.items()})


@contextmanager
def new_folder(target: Path, known: Mapping[str, str] | None = None) -> Generator[Path]:
    """Do what `atomic_folder` does, and add a manifest of every file.

    Args:
        target: the folder.
        known: the checksums of some files in it, by path; it may be filled within the block.

    Raises:
        CheckpointError: the disk is full, or the place is missing or cannot be written to.
    """
    with atomic_folder(target) as temporary:
        yield temporary
        write_manifest(temporary, known)


def verify_together(folder: Path) -> str | None:
    """Do what `verify` does, called by all processes alike, which share the files among them."""
    from axon_core.processes import gather, own  # here, because a tokenizer is read without torch

    return next((problem for problem in gather(verify(folder, own)) if problem is not None), None)


def verify(folder: Path, part: Callable[[list[str]], Iterable[str]] = iter) -> str | None:
    """Return what is wrong with a checkpoint that `new_folder` made, or None.

    Args:
        folder: the checkpoint.
        part: chooses, from the names of all files, those to look at.
    """
    try:
        if not (folder / MANIFEST).is_file():
            return f"{MANIFEST} is missing"
        known = sums(folder)
    except CheckpointError:
        return f"{MANIFEST} is unreadable"
    lacks = TREE if TREE not in known else missing_shard(list(known))
    if lacks is not None:
        return f"{MANIFEST} does not name {lacks}"
    for name in part(sorted(known)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != known[name]:
            return f"{name} does not match its checksum"
    return None


def add_to_manifest(folder: Path, *names: str, known: Mapping[str, str] | None = None) -> None:
    """Add files that were just written to a folder's manifest, which is made if there is none.

    Checksums that are `known` are not computed again.
    """
    try:
        others = sums(folder)
    except CheckpointError:  # what it said about other files is already lost
        others = {}
    _write(folder, {**others, **{name: (known or {}).get(name) or sha256(folder / name) for name in names}})


def read_checked(file: Path) -> bytes:
    """Return a file's contents.

    Raises:
        CheckpointError: they are not what the manifest beside the file says, or that cannot be read.
        OSError: the file cannot be read.
    """
    content = file.read_bytes()
    expected = sums(file.parent).get(file.name)
    if expected not in (None, hashlib.sha256(content).hexdigest()):
        raise _changed(file)
    return content


def check_folder(folder: Path) -> None:
    """Check all files that a folder's manifest names.

    Raises:
        CheckpointError: one is missing or was changed, or the manifest cannot be read.
    """
    for name, expected in sums(folder).items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, but {MANIFEST} names it; restore it")
        if sha256(folder / name) != expected:
            raise _changed(folder / name, folder)


def _changed(file: Path, folder: Path | None = None) -> CheckpointError:
    manifest = (folder or file.parent) / MANIFEST
    return CheckpointError(
        f"{file} was changed after it was written: it does not match its checksum in {MANIFEST}. Restore it, "
        f"or remove {manifest} to use it as it is"
    )


def _write(folder: Path, checksums: dict[str, str]) -> None:
    write_text(folder / MANIFEST, to_json({"sha256": dict(sorted(checksums.items()))}, indent=1))
