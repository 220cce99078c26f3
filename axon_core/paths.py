"""Paths as people write them: with `~`, and with variables of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from axon_core.errors import AxonError, DataError

__all__ = ["expanded"]


def expanded(path: Path | str, error: type[AxonError] = DataError) -> Path:
    """Return a path with `~` and `$VARIABLES` filled in; a `$` that is part of an existing file's name stays.

    Raises:
        AxonError: the path is empty, names a variable that is not set, or holds a zero byte; of the kind `error`, by
            default a `DataError`.
    """
    if not str(path).strip():
        raise error(f"path {str(path)!r} is empty; give a file or a folder, or leave out the field if it is optional")
    if "\0" in str(path):
        raise error(f"path {str(path)!r} contains a zero byte, which no file name can have")
    place = Path(os.path.expanduser(os.path.expandvars(path)))
    if "$" in str(place) and not place.exists():
        raise error(f"path {str(path)!r} names an environment variable that is not set; set it, or give a path")
    return place
