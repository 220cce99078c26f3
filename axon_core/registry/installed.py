"""What is installed of a distribution: its version, what it requires, and digests of its files. None of it is run.

The digest of a distribution's files says whether two installations would import the same code. It is the SHA-256 of a
line for each file, sorted by name: the name, a zero byte, the SHA-256 of the contents, a newline. The files are all
those in the packages that the distribution installs, where `import` would find them, and its `entry_points.txt`. So a
wheel and an editable install of the same sources have the same digest. Python's caches of bytecode, and files whose
names begin with a dot, as editors leave them, are not part of it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution

from axon_core.registry.distributions import is_whole, normalised_name

__all__ = ["files_digest", "find_module", "installed", "is_editable", "record_digest", "requirements", "top_level"]

_MODULE = (".py", ".pyc", ".so", ".pyd")


def installed(name: str) -> Distribution | None:
    """Return the distribution in use under this name: the first on `sys.path` that has its metadata; or None."""
    return next((dist for dist in metadata.distributions(name=name) if is_whole(dist)), None)


def requirements(dist: Distribution) -> dict[str, str]:
    """Return the distributions that this one requires, each with the extra that requires it or "" for none."""
    found: dict[str, str] = {}
    for line in dist.requires or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([^"']*)""", line)
        if name and (not extra or normalised_name(name[0]) not in found):
            found[normalised_name(name[0])] = extra[1] if extra else ""
    return found


def is_editable(dist: Distribution) -> bool:
    """Whether pip installed it from a folder whose files are used in place."""
    return '"editable": true' in (dist.read_text("direct_url.json") or "")


def record_digest(dist: Distribution) -> str | None:
    """Return the SHA-256 of what the distribution's wheel held, by the checksums in its `RECORD`; None if it has none.

    No file is read but `RECORD`, so it identifies the build of a library of any size in milliseconds, but does not
    notice a file that was changed after the installation.
    """
    lines = sorted(f"{path}\0{checksum}\n" for path, checksum in _recorded(dist) if checksum)
    return f"sha256:{hashlib.sha256(''.join(lines).encode('utf-8', 'surrogateescape')).hexdigest()}" if lines else None


def files_digest(dist: Distribution) -> str:
    """Return the digest of the distribution's files, such as `sha256:9f86d081…`; see this module.

    A file that cannot be read counts as such, and what a link points to counts as a file.
    """
    whole = hashlib.sha256()
    for name, file in sorted(_files(dist)):
        whole.update(os.fsencode(name) + b"\0" + _contents(file).encode() + b"\n")
    whole.update(b"entry_points.txt\0" + (_text(dist, "entry_points.txt") or "").encode("utf-8", "surrogateescape"))
    return f"sha256:{whole.hexdigest()}"


def find_module(name: str, path: list[str] | None = None) -> ModuleSpec | None:
    """Return where `import` would find a module, below the folders `path` of its parent if it has one; or None."""
    finders = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in finders if spec is not None), None)


def _contents(file: str) -> str:
    """Return the SHA-256 of a file's contents, read in pieces, or why there is none."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for ever
            return "not a file"
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"


def _files(dist: Distribution) -> Iterator[tuple[str, str]]:
    """Yield name and path of every file that the distribution's packages and modules consist of."""
    for package in sorted(top_level(dist)):
        if (spec := find_module(package)) is None:
            continue
        if spec.submodule_search_locations is not None:
            for folder in spec.submodule_search_locations:
                yield from _below(package, folder, {os.path.realpath(folder)})
        elif spec.has_location and spec.origin:
            yield os.path.basename(spec.origin), spec.origin


def _below(name: str, folder: str, above: set[str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of every file in a folder; a link to a folder that it is in leads no further."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        yield name, folder  # as a file that cannot be read
        return
    for entry in entries:
        inner = f"{name}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield inner, entry.path
        elif entry.name != "__pycache__" and (real := os.path.realpath(entry.path)) not in above:
            yield from _below(inner, entry.path, {*above, real})


def top_level(dist: Distribution) -> set[str]:
    """Return the packages and modules that a distribution installs, or that its entry points name."""
    roots = {path.partition("/")[0] for path, _ in _recorded(dist) if "/" in path or path.endswith(_MODULE)}
    names = {root.partition(".")[0] for root in roots if not root.endswith((".libs", ".data"))}
    own = normalised_name(dist.metadata["Name"] or "").replace("-", "_")
    try:
        targets = {point.value.partition(":")[0].partition(".")[0].strip() for point in dist.entry_points}
    except Exception:  # a damaged file, whose text is part of the digest
        targets = set[str]()
    foreign = {*sys.stdlib_module_names, *({"axon_core"} - {own})}
    return {name for name in {own, *names, *(targets - foreign)} if name.isidentifier()}


def _recorded(dist: Distribution) -> Iterator[tuple[str, str]]:
    """Yield the path and checksum of each file of the wheel, without what installers write on their own account."""
    for row in csv.reader((_text(dist, "RECORD") or "").splitlines()):
        path, checksum = [*row, "", ""][:2]
        root = path.partition("/")[0]
        written = root.endswith((".dist-info", ".pth")) or root.startswith(("__editable__", "_editable_impl_"))
        if path and not (root in ("", "..") or written or "__pycache__/" in path or os.path.isabs(path)):
            yield path, checksum


def _text(dist: Distribution, file: str) -> str | None:
    try:
        return dist.read_text(file)
    except (OSError, UnicodeDecodeError):
        return None
