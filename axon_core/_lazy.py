"""Packages whose names are imported when they are asked for."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # not from `typing`: what every command imports first stays small
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["attach"]


def attach(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package that exports `names`, by the module that defines them.

    Importing the package imports none of these modules, so that listing what is installed loads neither torch nor
    pydantic. The package's `__init__.pyi` tells type checkers the same names.
    """
    home = {name: module for module, defined in names.items() for name in defined}

    def __getattr__(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access finds it without coming here
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return __getattr__, __dir__, [*home]
