"""Packages of the extras, which a user installs when needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from axon_core.errors import UsageError
from axon_core.registry.suggest import install_line

__all__ = ["import_optional"]


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
