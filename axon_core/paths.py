"""Paths as people write them: with `~`, with variables of the environment, or within an installed package."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from axon_core.errors import AxonError, DataError

__all__ = ["expanded"]

_IN_PACKAGE = re.compile(r"([a-z][a-z0-9_]+):([^/\\].*)")


def expanded(path: Path | str, error: type[AxonError] = DataError) -> Path:
    """Return a path with `~` and `$VARIABLES` filled in; a `$` that is part of an existing file's name stays.

    `package:path` is a file that an installed package brings, as data of its recipes; the package is not imported.

    Raises:
        AxonError: the path is empty, names a variable that is not set or a package that is not installed, leads out of
            the package, or holds a zero byte; of the kind `error`, by default a `DataError`.
    """
    if not str(path).strip():
        raise error(f"path {str(path)!r} is empty; give a file or a folder, or leave out the field if it is optional")
    if "\0" in str(path):
        raise error(f"path {str(path)!r} contains a zero byte, which no file name can have")
    place = Path(os.path.expanduser(os.path.expandvars(path)))
    if "$" in str(place) and not place.exists():
        raise error(f"path {str(path)!r} names an environment variable that is not set; set it, or give a path")
    if (found := _IN_PACKAGE.fullmatch(str(place))) and not place.exists():
        return _in_package(found[1], found[2], error)
    return place


def _in_package(package: str, path: str, error: type[AxonError]) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise error(f"path {package}:{path} is in the package {package}, which is not installed")
    if ".." in Path(path).parts:
        raise error(f"path {package}:{path} must stay within the package")
    return Path(spec.submodule_search_locations[0]) / path
