"""Folders given as data: which of their files are read, in which order, and when a single file is required instead."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from axon_core.errors import DataError
from axon_core.escaping import printable

__all__ = ["TEXT_SUFFIXES", "data_files", "full_suffix", "refuse_folder"]

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".utf-8", ".utf8", ""})
"""Suffixes of the text files in a folder, in upper or lower case; "" for names without one."""

_log = logging.getLogger("axon")
_PACKED = (".gz", ".zst")
_NAMED = 3
"""How many files a message names before it counts the rest."""


def data_files(folder: Path, kind: str, suffixes: Collection[str]) -> list[Path]:
    """Return the files of a folder, and of the folders in it, whose names end in one of `suffixes`.

    They come in the order of their paths, compared folder by folder and character by character: `a/z.txt` before
    `b.txt`, `B.txt` before `a.txt`. Hidden files and folders, whose names begin with a dot, are skipped. One warning
    names the first of the others, and counts them; a link to a folder is one of them.

    Args:
        folder: where to look.
        kind: what the files hold, for messages: "text".
        suffixes: which names count, in lower case: ".txt", or "" for a name without a suffix, as `full_suffix` returns
            them. A file's own suffix may be in upper case.

    Raises:
        DataError: a folder cannot be read, or there is no such file; the message names what is there.
    """
    found = sorted(_visible(folder), key=lambda file: file.relative_to(folder).parts)
    kept = [file for file in found if full_suffix(file) in suffixes and file.is_file()]
    read = set(kept)
    others = [str(file.relative_to(folder)) for file in found if file not in read]
    known = ", ".join(suffix or "none" for suffix in sorted(suffixes, key=lambda suffix: (not suffix, suffix)))
    if not kept:
        there = f"only {_listed(others)}" if others else "no visible file"
        raise DataError(
            f"{folder} has no {kind}: the suffix must be one of {known}, but there is {there}; rename the files, or "
            "give another folder"
        )
    if others:
        _log.warning("%s: %s left out; the suffix of %s must be one of %s", folder, _listed(others), kind, known)
    return kept


def full_suffix(file: Path) -> str:
    """Return the suffix of a file in lower case, of a compressed one with the suffix before it.

    >>> full_suffix(Path("a.txt")), full_suffix(Path("b.JSONL.gz")), full_suffix(Path("README"))
    ('.txt', '.jsonl.gz', '')
    """
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() + suffix if suffix in _PACKED else suffix


def refuse_folder(place: Path, wanted: str) -> None:
    """Raise `DataError` if `place` is a folder, although `wanted`, such as "a file of JSON lines", is required."""
    if place.is_dir():
        raise DataError(f"cannot read {place}: it is a folder; give {wanted}")


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, except folders; a link to a folder is not followed."""
    found = list[Path]()
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*links, *files) if not name.startswith(".")]
    return found


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from None


def _listed(names: list[str]) -> str:
    """Return the first names and how many more there are: `a.json, b.png, c.png and 1,200 more`."""
    rest = len(names) - _NAMED
    return ", ".join(printable(name, line=True) for name in names[:_NAMED]) + (
        f" and {rest:,} more" if rest > 0 else ""
    )
