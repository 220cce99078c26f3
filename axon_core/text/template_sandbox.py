"""Chat templates from downloaded files, in Jinja's language: what they may use, and how much.

Jinja's sandbox keeps a template from Python's insides, but not from a filter that runs for hours or a text that fills
the memory. Here a template has a list of filters, methods and functions that it may use; each looks at the clock and
counts what it makes. So does each operator, loop and literal: `_Guard` rewrites the template's tree for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache, partial, wraps
from typing import Any, cast

from jinja2 import Undefined, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from axon_core.errors import DataError, UsageError
from axon_core.escaping import shortened
from axon_core.text.template_limits import CHARACTERS, VALUE, TemplateExcess, counting, running, size_of
from axon_core.text.template_operations import (
    FILTERS,
    FUNCTIONS,
    METHODS,
    TESTS,
    TEXT_METHODS,
    TemplateRefusal,
    type_name,
)

__all__ = ["rendered_chat"]

_TEMPLATE = 1 << 17
"""The most characters in a template."""
_REMEDY = "use `axon generate` instead, or correct the template in the checkpoint and import that again"

_FORBIDDEN: Mapping[type, str] = {
    nodes.Block: "block",
    nodes.Extends: "extends",
    nodes.FromImport: "from",
    nodes.Import: "import",
    nodes.Include: "include",
    nodes.ScopedEvalContextModifier: "autoescape",
}


def rendered_chat(source: str, **values: Any) -> str:
    """Return what a chat template makes of the values.

    Whatever the template does, it ends after about 2 seconds, and holds at most some hundred megabytes.

    Raises:
        UsageError: the template itself refuses them, with `raise_exception`.
        DataError: it is malformed, uses what chat templates may not, runs for more than 2 seconds, or makes too much.
    """
    try:
        parts, room = list[str](), CHARACTERS
        with counting():
            for part in _compiled(source).generate(**{"tools": None, "documents": None} | values):
                parts.append(part)
                room -= len(part)
                if room < 0:
                    raise TemplateExcess(f"makes more than {CHARACTERS:,} characters")
    except TemplateRefusal as error:
        raise UsageError(f"the chat template refuses the messages: {shortened(str(error), 200)}") from None
    except TemplateExcess as error:
        raise DataError(f"the chat template cannot be used: it {error}; {_REMEDY}") from None
    except Exception as error:  # a template can cause any, and Jinja's errors are only some of them
        reason = shortened(str(error) or type(error).__name__, 200).rstrip(".")
        raise DataError(f"the chat template cannot be used: {reason}; {_REMEDY}") from None
    return "".join(parts)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own sandbox, in which whatever runs is on a list, and counted."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Join what a macro or a block makes."""
        return running().joined(parts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        running().tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        running().tick()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        both = (left, right)
        numbers = [value for value in both if isinstance(value, int | float)]
        if any(isinstance(value, int) and abs(value) > 1 << 62 for value in numbers) or operator == "**":
            raise TemplateExcess("computes with numbers that are too large")
        if len(numbers) < 2 and not any(isinstance(value, Undefined) for value in both):
            if operator == "*" and len(numbers) == 1:
                (sequence,) = (value for value in both if not isinstance(value, int | float))
                if (len(sequence) if isinstance(sequence, str) else size_of(sequence)) * numbers[0] > VALUE:
                    raise TemplateExcess(f"makes a text or list of more than {VALUE >> 20} MiB")
            elif operator != "+":
                raise TemplateExcess(
                    f"computes {type_name(left)} {operator} {type_name(right)}, which is for numbers alone"
                )
        return running().made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        count = running()
        count.tick()
        owner, name = getattr(obj, "__self__", None), str(getattr(obj, "__name__", type_name(obj)))
        if isinstance(obj, Macro):
            size_of([*args, *(value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars"))])
        elif not isinstance(obj, LoopContext | Undefined) and not any(obj is each for each in FUNCTIONS.values()):
            if not any(isinstance(owner, kind) and name in names for kind, names in METHODS.items()):
                whose = "" if owner is None else f"{type_name(owner)}."
                raise TemplateExcess(f"calls {whose}{shortened(name, 60)}, which chat templates may not")
            if isinstance(owner, str) and name in TEXT_METHODS:
                return super().call(context, partial(TEXT_METHODS[name], obj), *args, **kwargs)
        found = super().call(context, obj, *args, **kwargs)
        return count.made(found) if isinstance(owner, str) else found


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant says; what is set there is not known after it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what is between the tags."""
        next(parser.stream)
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Guard(NodeTransformer):
    """Puts counting filters, whose names no template can write, around what Jinja compiles to plain Python."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if tag := _FORBIDDEN.get(type(node)):
            raise TemplateExcess(f"uses {{% {tag} %}}, which chat templates may not")
        return super().visit(node, *args, **kwargs)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _filtered(parts, "(joined)")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "(made)")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "(made)")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "(made)") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "(made)") if isinstance(node.arg, nodes.Slice) else node

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "(timed)")
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        nothing = nodes.Const(None, lineno=node.lineno, environment=node.environment)
        node.body.insert(0, nodes.ExprStmt(_filtered(nothing, "(timed)"), lineno=node.lineno))
        if node.test is not None:
            node.test = _filtered(cast("nodes.Expr", node.test), "(timed)")
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


@cache
def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # nothing of a template runs before it is counted
        finalize=_shown,
        extensions=[loopcontrols, _Generation],
    )
    environment.globals = dict(FUNCTIONS)
    own: dict[str, Any] = {name: _made(function) for name, function in FILTERS.items()} | {
        "(joined)": _join,
        "(made)": _made(_timed),
        "(timed)": _timed,
    }
    environment.filters = own
    environment.tests = {name: _made(test) for name, test in TESTS.items()}
    return environment


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    if len(source) > _TEMPLATE:
        raise TemplateExcess(f"has {len(source):,} characters, more than {_TEMPLATE:,}")
    environment = _environment()
    return environment.from_string(_Guard().visit(environment.parse(source)))


def _made(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or test that is counted."""

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        count = running()
        count.tick()
        return count.made(function(*args, **kwargs))

    return counted


def _timed(value: Any) -> Any:
    running().tick()
    return value


@pass_context
def _shown(context: Any, value: Any) -> str:
    """Return the text that `{{ value }}` writes."""
    return _timed(value) if isinstance(value, str) else running().made(str(value))


def _join(parts: list[object]) -> str:
    return running().joined(parts)
