"""The functions, methods, properties and classes of which a reader looks for a docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from types import FunctionType
from typing import Any, NamedTuple

_SPECIAL = ("__init__", "__call__", "__post_init__")


class Documented(NamedTuple):
    """A public function, method or property."""

    path: str
    function: FunctionType
    doc: str
    """What documents it: its own docstring, or the one it inherits; the class's too for what makes or calls it."""
    owner: type | None
    """Its class."""


def underlying(member: Any) -> Any:
    """Return the function of a property, or of a method of a class; anything else as it is."""
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, cached_property) else getattr(member, "__func__", member)


def functions(path: str, value: Any) -> Iterator[Documented]:
    """Yield a public function, or the public methods of a public class and of those in its body."""
    value = inspect.unwrap(value)
    if inspect.isfunction(value):
        yield Documented(path, value, inspect.getdoc(value) or "", None)
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        function = underlying(member)
        if inspect.isclass(member) and member.__qualname__.startswith(f"{value.__qualname__}."):
            yield from functions(f"{path}.{name}", member)
        elif inspect.isfunction(function) and function.__module__ == value.__module__:
            function, doc = inspect.unwrap(function), inspect.getdoc(getattr(value, name)) or ""
            if name in _SPECIAL:  # what making or calling an object raises may stand with its class
                yield Documented(f"{path}.{name}", function, f"{inspect.getdoc(value)}\n{function.__doc__}", value)
            elif not name.startswith("_"):
                yield Documented(f"{path}.{name}", function, doc, value)


def classes(path: str, value: Any) -> Iterator[tuple[str, type]]:
    """Yield a public class, and the public classes in its body."""
    if inspect.isclass(value):
        yield path, value
        for name, member in vars(value).items():
            own = inspect.isclass(member) and member.__qualname__ == f"{value.__qualname__}.{name}"
            if own and not name.startswith("_"):
                yield from classes(f"{path}.{name}", member)
