"""What functions raise, as the source has it."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from axon_docs.documented import underlying

Errors = frozenset[type[BaseException]]


@cache
def raised(function: FunctionType, owner: type | None = None) -> Errors:
    """Return the errors that a function raises by name, itself or through private helpers, and does not catch.

    Its helpers are the private functions and classes of its module, those of them that it calls, and the private
    methods and properties of `self`, which belong to the class `owner`; and what these call in turn.
    """
    return _Body(function, owner, frozenset()).errors()


@dataclass(frozen=True)
class _Body:
    """The source of a function, read while those of `callers` are."""

    function: FunctionType
    owner: type | None
    callers: frozenset[FunctionType]

    def errors(self) -> Errors:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(self.function)))
        except OSError:  # what a dataclass or a named tuple generates
            return Errors()
        return self.of(tree)

    def of(self, node: ast.AST) -> Errors:
        """The errors that leave a piece of the body."""
        found = Errors()
        if isinstance(node, ast.Raise) and node.exc is not None:
            found |= self.named(node.exc)
        for helper, owner in self.helpers(node):
            if helper not in self.callers:
                found |= _Body(helper, owner, self.callers | {self.function}).errors()
        guarded, rest = self.parts(node)
        for piece in rest:
            found |= self.of(piece)
        caught = tuple(self.caught(node))
        return found.union(*({e for e in self.of(piece) if not issubclass(e, caught)} for piece in guarded))

    def named(self, raised: ast.expr) -> Errors:
        """The error that is raised: a class, an instance of it, or what a function says that it returns."""
        made = self.meaning(raised.func if isinstance(raised, ast.Call) else raised)
        if inspect.isfunction(made) and isinstance(returned := made.__annotations__.get("return"), str):
            made = self.meaning(ast.parse(returned, mode="eval").body)
        return Errors({made}) if inspect.isclass(made) and issubclass(made, BaseException) else Errors()

    def helpers(self, node: ast.AST) -> Iterator[tuple[FunctionType, type | None]]:
        """The private function that a node calls, or the private property it reads, with its class."""
        match node:
            case ast.Call(func=ast.Name(id=name)) if name.startswith("_"):
                helper = self.scope.get(name)
                if getattr(helper, "__module__", None) != self.function.__module__:
                    return
                if inspect.isclass(helper):
                    yield from _code(vars(helper).get("__init__"), helper)
                else:
                    yield from _code(helper, None)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if name[0] == "_" and name[:2] != "__":
                yield from _code(getattr(self.owner, name, None), self.owner)

    def parts(self, node: ast.AST) -> tuple[Sequence[ast.AST], Sequence[ast.AST]]:
        """What is in a node: that of which it catches errors, and the rest."""
        match node:
            case ast.Try():
                return node.body, [*node.handlers, *node.orelse, *node.finalbody]
            case ast.With():
                return node.body, node.items
        return (), [*ast.iter_child_nodes(node)]

    def caught(self, node: ast.AST) -> Iterator[type[BaseException]]:
        """The errors that a node catches, and does not raise again."""
        types: list[ast.expr | None] = []
        match node:
            case ast.Try():
                types = [h.type for h in node.handlers if not any(_passes_on(inner) for inner in ast.walk(h))]
            case ast.With():
                calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
                types = [kind for call in calls if self.meaning(call.func) is suppress for kind in call.args]
        for kind in types:
            for one in kind.elts if isinstance(kind, ast.Tuple) else [kind]:
                meant = BaseException if one is None else self.meaning(one)
                if inspect.isclass(meant) and issubclass(meant, BaseException):
                    yield meant

    def meaning(self, expression: ast.expr) -> Any:
        """What a name, or a dotted one, is in the function's module."""
        match expression:
            case ast.Name(id=name):
                return self.scope.get(name, getattr(builtins, name, None))
            case ast.Attribute(value=value, attr=name):
                return getattr(self.meaning(value), name, None)
        return None

    @property
    def scope(self) -> Mapping[str, Any]:
        return self.function.__globals__


def _passes_on(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) and node.exc is None


def _code(value: Any, owner: type | None) -> Iterator[tuple[FunctionType, type | None]]:
    """The function behind a function, a method or a property."""
    value = underlying(value)
    if callable(value) and inspect.isfunction(function := inspect.unwrap(value)):
        yield function, owner
