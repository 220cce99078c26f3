"""Finds the lines that a step names, in the source as it is now."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from axon_core import DataError
from axon_lab.pseudocode.algorithm import Anchor, PseudocodeAlgorithm

__all__ = ["Definition", "SourceSpan", "find_definition", "find_span", "missing_lines", "module_file"]

Locate = Callable[[str], Path]
"""Returns the file of a module."""


@dataclass(frozen=True)
class Definition:
    """A function, method or class in a file."""

    file: Path
    """The file."""
    first: int
    """Its first line, counted from 1: a decorator's, if it has any."""
    lines: tuple[str, ...]
    """Its lines."""
    code: frozenset[int]
    """The numbers, as in the file, of its lines outside docstrings."""


@dataclass(frozen=True)
class SourceSpan:
    """Adjacent lines of a definition."""

    anchor: Anchor
    """What names them."""
    definition: Definition
    """Where they stand."""
    first: int
    """The number of the first, as in the file."""
    last: int
    """The number of the last."""


@cache
def module_file(module: str) -> Path:
    """Return the file of an installed module.

    Raises:
        DataError: it is not installed, or has no source.
    """
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DataError(f"a step names the module {module}, which is not installed: install its distribution")
    return Path(spec.origin)


def find_definition(at: str, locate: Locate = module_file) -> Definition:
    """Return the definition `module:qualified name`.

    Raises:
        DataError: the module is not installed, or does not define the name.
    """
    module, _, name = at.partition(":")
    file = locate(module)
    text = file.read_text("utf-8-sig")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        body: Sequence[ast.stmt] = getattr(node, "body", ())
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [inner for inner in body if isinstance(inner, kinds) and inner.name == part]
        if not found:
            raise DataError(f"{module} defines no {name}; correct the step that names it")
        node = found[-1]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno or first
    texts = {number for inner in ast.walk(node) for number in _string_lines(inner)}
    code = frozenset(range(first, last + 1)) - texts
    return Definition(file, first, tuple(text.splitlines()[first - 1 : last]), code)


def find_span(anchor: Anchor, locate: Locate = module_file) -> SourceSpan:
    """Return the lines that `anchor` names. Moving them within their definition changes nothing but their numbers.

    Raises:
        DataError: the definition has no such lines, or has them twice.
    """
    definition = find_definition(anchor.at, locate)
    wanted = [line.strip() for line in anchor.lines.splitlines()]
    lines = [line.strip() for line in definition.lines]
    starts = [
        definition.first + i
        for i in range(len(lines) - len(wanted) + 1)
        if lines[i : i + len(wanted)] == wanted
        and definition.code.issuperset(range(definition.first + i, definition.first + i + len(wanted)))
    ]
    if len(starts) != 1:
        rule = "does not have" if not starts else f"has {len(starts)} times"
        raise DataError(f"{anchor.at} {rule} the line {' ⏎ '.join(wanted)!r}; correct the step, or restore the line")
    return SourceSpan(anchor, definition, starts[0], starts[0] + len(wanted) - 1)


def missing_lines(algorithm: PseudocodeAlgorithm, locate: Locate = module_file) -> list[str]:
    """Return what is wrong with the lines that the steps of `algorithm` name; nothing if all are there."""
    wrong: list[str] = []
    for number, step in enumerate(algorithm.step, 1):
        for anchor in step.code:
            try:
                find_span(anchor, locate)
            except DataError as error:
                wrong.append(f"{algorithm.id}, step {number}: {error}")
    return wrong


def _string_lines(node: ast.AST) -> range:
    """The lines of a statement that is a string: a docstring, or code that someone took out."""
    match node:
        case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=last):
            return range(first, (last or first) + 1)
        case _:
            return range(0)
