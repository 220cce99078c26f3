"""The names of distributions, and fields of their metadata, however damaged these are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["DIST_NAME", "header", "is_whole", "normalised_name"]

DIST_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
"""The names that a distribution may have (PEP 508)."""


def normalised_name(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it: `My_Plugin` is `my-plugin`."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def is_whole(dist: Distribution) -> bool:
    """Whether the metadata of a distribution are there; an interrupted installation leaves a folder without them."""
    try:
        return header(dist, "Version") is not None
    except Exception:  # whatever bytes are there
        return False


def header(dist: Distribution, name: str) -> str | None:
    """Return a field of a distribution's metadata, or None; `dist.version` parses the whole e-mail, 50 times slower."""
    for file in ("METADATA", "PKG-INFO", ""):  # the last if the .egg-info is itself the file
        if text := dist.read_text(file):
            found = re.search(rf"^{name}:[ \t]*(\S+)", text.partition("\n\n")[0], re.MULTILINE | re.IGNORECASE)
            # A name appears in command lines to paste, so an invalid one is as good as missing.
            return found and (found[1] if name != "Name" or re.fullmatch(DIST_NAME, found[1]) else None)
    return None
