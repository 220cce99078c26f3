"""The public names of the core and of every plugin, and where each is documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from axon_core.registry.discovery import discover
from axon_docs.source import constants


@dataclass(frozen=True)
class Public:
    """A public name."""

    module: str
    """Where it is imported from: the package where that exports it, else the module that defines it."""
    name: str
    """The name."""
    value: Any
    """What it names."""

    @property
    def path(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"


def packages() -> list[str]:
    """Return the core's package and those of all installed papers."""
    return ["axon_core", *sorted({entry.target.split(".")[0] for entry in discover().entries("paper")})]


def modules(package: str) -> list[ModuleType]:
    """Return the package and its modules. The command line's have a page of their own, and are left out."""
    top = importlib.import_module(package)
    names = [found.name for found in pkgutil.walk_packages(top.__path__, f"{package}.")]
    return [top, *(importlib.import_module(name) for name in sorted(names) if not _hidden(name))]


def public(package: str) -> dict[str, list[Public]]:
    """Return the public names of each module; one that the package exports stands there, and not where it is defined.

    A module's are those in its `__all__`, or, where it has none, the classes, functions and constants it defines.
    """
    top, *others = modules(package)
    exported = [Public(package, name, getattr(top, name)) for name in sorted(getattr(top, "__all__", ()))]
    known = {identity(found) for found in exported}
    names = {package: exported}
    for module in others:
        found = [Public(module.__name__, name, getattr(module, name)) for name in _own(module)]
        names[module.__name__] = [f for f in found if identity(f) not in known]
        known |= {identity(f) for f in found}
    return {module: found for module, found in names.items() if found}


def exports(package: str) -> dict[str, list[Public]]:
    """Return the names of `public` that the package, or a package in it, exports: what a plugin may import."""
    return {module: found for module, found in public(package).items() if hasattr(sys.modules[module], "__path__")}


def inside(package: str) -> dict[str, list[Public]]:
    """Return the names of `public` that no package exports."""
    return {module: found for module, found in public(package).items() if module not in exports(package)}


def _own(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    code = {n: v for n, v in vars(module).items() if not n.startswith("_") and _is_code(v)}
    return sorted({*constants(module.__name__), *(n for n, v in code.items() if v.__module__ == module.__name__)})


def identity(found: Public) -> tuple[int, str]:
    """Return what tells whether two names are one: of constants, the name too, as equal ones may be one object."""
    return id(found.value), "" if _is_code(found.value) else found.name


def _is_code(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))  # a cached one is a function too


def _hidden(name: str) -> bool:
    parts = name.split(".")
    return "cli" in parts[:-1] or parts[-1].endswith("_cli") or any(part.startswith("_") for part in parts)
