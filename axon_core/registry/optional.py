"""Packages of the extras, which a user installs when needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from axon_core.errors import UsageError
from axon_core.registry.suggest import install_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["import_optional", "new_figure"]


def import_optional(module: str, extra: str) -> ModuleType:
    """Return a module of a package that an extra of axon-core installs.

    Raises:
        UsageError: it is not installed, or cannot be imported; the message has the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        line = install_line("axon-core", extra)
        raise UsageError(f"{extra} cannot be used here ({error}). Install it: {line}") from error


def new_figure(width: float = 6.4, height: float = 4.8) -> Figure | None:
    """Return an empty matplotlib figure of this size in inches, or None if matplotlib is not installed.

    It is made without pyplot, which keeps global state. Its parts are laid out so that none covers another.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")
