"""What only the source says: the docstrings of attributes and constants, and the imports for type checkers."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Assigned:
    """A name that is assigned or annotated in a module or a class."""

    annotation: str
    """Its annotation, as written; empty where there is none."""
    value: str
    """Its value, as written; empty where there is none."""
    doc: str
    """The string below it; empty where there is none."""


@cache
def constants(module: str) -> dict[str, Assigned]:
    """Return the public names that a module assigns, but for its type variables."""
    return {
        n: a for n, a in _assigned(_tree(module).body).items() if not a.value.startswith(("TypeVar(", "ParamSpec("))
    }


@cache
def attributes(cls: type) -> dict[str, Assigned]:
    """Return the public names that the body of a class assigns or annotates."""
    body: Sequence[ast.stmt] = _tree(cls.__module__).body
    for name in cls.__qualname__.split("."):
        body = next((s.body for s in body if isinstance(s, ast.ClassDef) and s.name == name), ())
    return _assigned(body)


@cache
def typing_only(module: str) -> dict[str, Any]:
    """Return what a module imports from Axon under `if TYPE_CHECKING`, by its name there."""
    blocks = [s for s in _tree(module).body if isinstance(s, ast.If) and ast.unparse(s.test) == "TYPE_CHECKING"]
    lines = [s for block in blocks for s in block.body if isinstance(s, ast.ImportFrom)]
    own = [line for line in lines if line.module and line.module.startswith("axon_")]
    return {a.asname or a.name: getattr(import_module(line.module), a.name) for line in own for a in line.names}


def _assigned(body: Sequence[ast.stmt]) -> dict[str, Assigned]:
    found = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            targets, annotation = [statement.target], ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign):
            targets, annotation = statement.targets, ""
        else:
            continue
        value = ast.unparse(statement.value) if statement.value else ""
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                doc = inspect.cleandoc(text)
            case _:
                doc = ""
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                found[target.id] = Assigned(annotation, value, doc)
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))
