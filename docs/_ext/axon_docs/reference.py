"""The reference: every public name with its signature, docstring, options, fields and methods."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any

from pydantic import BaseModel

from axon_core.registry.registry import Registry
from axon_docs.docstrings import markdown
from axon_docs.names import Public, exports, identity, inside, modules, packages, public
from axon_docs.source import Assigned, attributes, constants, typing_only

_LONGEST = 200  # characters of a value that is shown


def page(title: str, about: str, sections: Mapping[str, Iterable[Public]]) -> str:
    """Return a page of the reference as MyST Markdown, one section a module; that of the title has no heading."""
    lines = [f"# {title}", "", about, ""]
    for module, names in sections.items():
        if module != title:
            lines += [f"## {module}", "", markdown(inspect.getdoc(import_module(module)) or ""), ""]
        lines += [f"```{{py:currentmodule}} {module}", "```", "", *_elsewhere(module, names)]
        for name in names:
            lines += [entry(name), ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return the pages of the reference by name: each package's, and that of the core's modules from inside."""
    made = {name: page(name, markdown(inspect.getdoc(import_module(name)) or ""), public(name)) for name in packages()}
    about = (
        "What plugins may import: the names that `axon_core` and its packages export. The modules they lie in are on "
        "a page of their own, [the core from inside](axon_core.inside.md), and may change with any version."
    )
    made["axon_core"] = page("axon_core", about, exports("axon_core"))
    about = "The modules of the core, for those who change it. Plugins import from [its packages](axon_core.md)."
    return made | {"axon_core.inside": page("The core from inside", about, inside("axon_core"))}


def _elsewhere(module: str, names: Iterable[Public]) -> list[str]:
    """A line that links the names a module exports which another section of the page describes."""
    here, package = {found.name for found in names}, import_module(module)
    others = [
        name for name in sorted(getattr(package, "__all__", ())) if name not in here and hasattr(package, "__path__")
    ]
    paths = [_described()[identity(Public(module, name, getattr(package, name)))] for name in others]
    links = ", ".join(f"{{py:obj}}`{name} <{path}>`" for name, path in zip(others, paths, strict=True))
    return [f"Exported from here too: {links}.", ""] if links else []


@cache
def _described() -> dict[tuple[int, str], str]:
    """Where each public name is documented."""
    every = (found for package in packages() for names in public(package).values() for found in names)
    return {identity(found): found.path for found in every}


def entry(found: Public) -> str:
    """Return one name's directive of the Python domain."""
    value = inspect.unwrap(found.value)
    if inspect.isclass(value):
        return "\n".join(_class(found.name, value))
    if inspect.isfunction(value):
        return "\n".join(_directive("function", f"{found.name}{signature(value)}", [_doc(value)]))
    if isinstance(value, Registry):
        return "\n".join(_directive("data", found.name, [f"The registry of group `axon.v1.{value.group}`."]))
    written = _written(found)
    return "\n".join(_directive("data", found.name, [_value(found, written), markdown(written.doc)]))


def signature(function: Any, bound: bool = False, result: bool = True) -> str:
    """Return the signature as the source has it, shapes included; the first parameter is left out of a method's."""
    given, means = inspect.signature(function), _scope(function.__module__, function.__qualname__)
    parameters = list(given.parameters.values())[1 if bound else 0 :]
    shown, star = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = prefix + parameter.name + _annotation(parameter.annotation, ": ", means)
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        shown.append(text)
    returns = _annotation(given.return_annotation, " -> ", means) if result else ""
    return f"({', '.join(shown)}){returns}"


def _annotation(annotation: Any, before: str, means: Mapping[str, Any]) -> str:
    """The annotation as written, but that Axon's own names are given in full, so that they can be linked."""
    if annotation is inspect.Signature.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    paths = _paths()
    full = re.sub(
        r"(?<![\w.])[A-Z]\w*(?=[^\"]*(?:\"[^\"]*\"[^\"]*)*$)", lambda m: paths.get(id(means.get(m[0])), m[0]), text
    )
    return before + full


def _scope(module: str, qualname: str) -> dict[str, Any]:
    """What names mean inside of `qualname`: a class's own classes, such as its `Config`, before those of the module."""
    means = typing_only(module) | vars(sys.modules[module])
    owner = means.get(qualname.partition(".")[0])
    return means | (dict(_nested(owner)) if inspect.isclass(owner) else {})


def _nested(cls: type) -> Iterator[tuple[str, type]]:
    """The public classes in the body of a class."""
    for name, member in vars(cls).items():
        if inspect.isclass(member) and member.__qualname__ == f"{cls.__qualname__}.{name}" and name[0] != "_":
            yield name, member


@cache
def _paths() -> dict[int, str]:
    """Where each public class is documented, and each in the body of one."""
    every = (found for package in packages() for names in public(package).values() for found in names)
    classes = [found for found in every if inspect.isclass(found.value)]
    inner = {id(c): f"{found.path}.{name}" for found in classes for name, c in _nested(found.value)}
    return inner | {id(found.value): found.path for found in classes}


def _default(value: Any) -> str:
    text = repr(value)
    plain = isinstance(value, bool | int | float | str | tuple | type(None)) and "<" not in text
    return text if plain else "..."


def _class(path: str, cls: type) -> list[str]:
    body = [_doc(cls)]
    if issubclass(cls, BaseModel):
        body.append(options(cls))
    else:
        body += _attributes(path, cls)
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        where = f"{path}.{name}"
        if inspect.isclass(member) and member is not cls and member.__qualname__.startswith(cls.__qualname__):
            body.append("\n".join(_class(where, member)))
        elif isinstance(member, property):
            body.append("\n".join(_directive("property", where, [_doc(member)])))
        elif isinstance(member, classmethod | staticmethod):
            kind = type(member).__name__
            text = signature(member.__func__, bound=kind == "classmethod")
            body.append("\n".join(_directive("method", where + text, [_doc(getattr(cls, name))], f":{kind}:")))
        elif inspect.isfunction(member) and (member.__doc__ or not _overrides(cls, name)):
            body.append("\n".join(_directive("method", where + signature(member, bound=True), [_doc(member)])))
    return _directive("class", path + _constructor(cls), body)


def _constructor(cls: type) -> str:
    """What it is made of: the parameters of Axon's own `__init__`, or the fields of a named tuple."""
    if issubclass(cls, tuple) and (names := getattr(cls, "_fields", ())):
        found, defaults = attributes(cls), cls._field_defaults
        shown = [
            name
            + _annotation(found[name].annotation, ": ", _scope(cls.__module__, cls.__qualname__))
            + (f" = {_default(defaults[name])}" if name in defaults else "")
            for name in names
        ]
        return f"({', '.join(shown)})"
    made = next(vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base))
    own = isinstance(made, FunctionType) and made.__module__.startswith("axon_")
    return signature(made, bound=True, result=False) if own and not issubclass(cls, BaseModel) else ""


def _attributes(path: str, cls: type) -> list[str]:
    """The fields of a dataclass or named tuple, and what else the class describes by a string below it."""
    fields = {*getattr(cls, "_fields", ()), *getattr(cls, "__dataclass_fields__", ())}
    shown = {name: found for name, found in attributes(cls).items() if found.doc or name in fields}
    return [
        "\n".join(
            _directive(
                "attribute",
                f"{path}.{name}",
                [markdown(found.doc)],
                *(
                    [f":type: {_annotation(found.annotation, '', _scope(cls.__module__, cls.__qualname__))}"]
                    if found.annotation
                    else []
                ),
                *([f":value: {found.value}"] if found.value and name not in fields else []),
            )
        )
        for name, found in shown.items()
    ]


def _overrides(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__[1:])


def options(config: type[BaseModel]) -> str:
    """Return the table of a config's fields."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for name, field in config.model_fields.items():
        default = "required" if field.is_required() else "computed" if field.default_factory else f"`{field.default!r}`"
        kind = inspect.formatannotation(field.annotation).replace("|", "\\|")
        about = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | `{kind}` | {default.replace('|', chr(92) + '|')} | {markdown(about)} |")
    return "\n".join(lines) if config.model_fields else ""


def _directive(kind: str, argument: str, body: Iterable[str], *options: str) -> list[str]:
    inner = "\n\n".join(part for part in body if part)
    fence = "`" * (3 + max((len(run) for run in _fences(inner)), default=2) - 2)
    return [f"{fence}{{py:{kind}}} {argument}", *options, "", inner, fence]


def _fences(text: str) -> list[str]:
    starts = [line.lstrip() for line in text.splitlines()]
    return [line[: len(line) - len(line.lstrip("`"))] for line in starts if line.startswith("```")]


def _doc(value: Any) -> str:
    return markdown(inspect.getdoc(value) or "")


def _written(found: Public) -> Assigned:
    """What the source says of a constant, in the module that assigns it."""
    for module in (found.module, *(m.__name__ for m in modules(found.module.partition(".")[0]))):
        own = constants(module).get(found.name)
        if own and getattr(sys.modules[module], found.name) is found.value:
            return own
    return Assigned("", "", "")


def _value(found: Public, written: Assigned) -> str:
    text = written.value or repr(found.value)
    return f"`{text}`" if len(text) < _LONGEST and "<" not in text else f"A `{type(found.value).__name__}`."
