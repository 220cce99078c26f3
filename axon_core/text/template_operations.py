"""The filters, methods and functions that a chat template may use: those of published models, none without a bound."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import filters, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import LoopContext
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace

from axon_core.escaping import shortened
from axon_core.json_text import to_json
from axon_core.text.template_limits import CHARACTERS, ITEMS, TemplateExcess, running, size_of

__all__ = ["FILTERS", "FUNCTIONS", "METHODS", "TESTS", "TEXT_METHODS", "TemplateRefusal", "type_name"]

_SOUGHT = 256
"""The most characters in a text that is stripped, or sought from the right: for these Python's time is a product."""
_NEWLINES = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class TemplateRefusal(Exception):
    """What `raise_exception` raises."""


def type_name(value: object) -> str:
    """Return the name of a value's type."""
    return type(value).__name__


def _raise(message: object) -> None:
    raise TemplateRefusal(str(message))


def _now(style: str) -> str:
    if len(style) > _SOUGHT:
        raise TemplateExcess(f"writes the time in a style of more than {_SOUGHT} characters")
    return running().made(datetime.now().strftime(style))


def _range(*bounds: int) -> range:
    if max(map(abs, bounds), default=0) > 1 << 31 or len(found := range(*bounds)) > 100_000:
        raise TemplateExcess("counts to more than 100,000")
    return found


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return running().made(dict(*args, **kwargs))


class _Names(Namespace):
    """Jinja's `namespace`, of which each copy counts and which is written without what it holds."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in _dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise TemplateExcess(
                f"names {shortened(str(name), 60)} in a namespace; only names without _ before them may be"
            )
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


@pass_environment
def _joined(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(filters.make_attrgetter(environment, attribute), value)
    return running().joined(value, str(d))


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    if len(text) + found * (len(new) - len(old)) > CHARACTERS:
        raise TemplateExcess(f"makes a text of more than {CHARACTERS:,} characters")
    return running().made(text.replace(old, new, found))


def _split(method: Callable[..., list[str]], sep: str | None = None, maxsplit: int = -1) -> list[str]:
    _check_sought(sep if method.__name__ == "rsplit" else None)
    found = method(sep, min(maxsplit, ITEMS) if maxsplit >= 0 else ITEMS)
    if len(found) > ITEMS:
        raise TemplateExcess(f"splits a text into more than {ITEMS:,} pieces")
    return running().pieces(found)


def _lines(method: Callable[..., list[str]], keepends: bool = False) -> list[str]:
    text: str = method.__self__  # pyright: ignore
    if sum(map(text.count, _NEWLINES)) > ITEMS:
        raise TemplateExcess(f"splits a text into more than {ITEMS:,} pieces")
    return running().pieces(method(keepends))


def _parted(method: Callable[..., Any], sep: str) -> Any:
    _check_sought(sep if method.__name__ == "rpartition" else None)
    return running().pieces(method(sep))


def _sought(method: Callable[..., Any], *args: Any) -> Any:
    _check_sought(args[0] if args else None)
    return running().made(method(*args))


def _check_sought(text: str | None) -> None:
    if text is not None and len(text) > _SOUGHT:
        raise TemplateExcess(f"strips or seeks from the right a text of more than {_SOUGHT} characters")


def _method_joined(method: Any, parts: Iterable[Any]) -> str:
    return running().joined(_texts(parts), method.__self__)


def _method_replaced(method: Any, *args: Any) -> str:
    return _replaced(method.__self__, *args)


def _texts(parts: Iterable[Any]) -> Generator[str]:
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"join takes texts, got {type_name(part)}")
        yield part


TEXT_METHODS: Mapping[str, Callable[..., Any]] = {
    "join": _method_joined,
    "replace": _method_replaced,
    "split": _split,
    "rsplit": _split,
    "splitlines": _lines,
    "partition": _parted,
    "rpartition": _parted,
} | dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex"), _sought)
"""How methods of texts are called whose result, or whose time, has no bound of its own."""


def _trim(value: Any, chars: str | None = None) -> str:
    return _sought(str(value).strip, chars)


def _listed(value: Iterable[Any]) -> list[Any]:
    return list(running().each(value))


def _by_item(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that looks at the clock before each item."""

    @pass_environment
    def timed(environment: Any, value: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        return function(environment, running().each(value), *args, **kwargs)

    return timed


def _of_number(function: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a filter or test for a number, or for the short text of one."""
    if isinstance(value, str) and (len(value) > _SOUGHT or function not in (filters.do_int, filters.do_float)):
        raise TemplateExcess(f"computes with a text of {len(value):,} characters")
    return function(value, *args, **kwargs)


def _rounded(value: float, precision: int = 0, method: Any = "common") -> float:
    if not -16 <= precision <= 16:
        raise TemplateExcess(f"rounds to {precision} digits")
    return filters.do_round(value, precision, method)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without HTML escapes, as transformers does."""
    if indent is not None and not 0 <= int(indent) <= 8:
        raise TemplateExcess("indents JSON by more than 8 characters")
    if any(len(separator) > 8 for separator in separators or ()):
        raise TemplateExcess("separates JSON by more than 8 characters")
    size_of(value)
    return to_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indented(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
    added = len(width) if isinstance(width, str) else width
    if len(text) + added * (1 + sum(map(text.count, _NEWLINES))) > CHARACTERS:
        raise TemplateExcess(f"makes a text of more than {CHARACTERS:,} characters")
    return filters.do_indent(text, width, *args, **kwargs)


_OWN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "float": partial(_of_number, filters.do_float),
    "indent": _indented,
    "int": partial(_of_number, filters.do_int),
    "join": _joined,
    "list": _listed,
    "max": _by_item(filters.do_max),
    "min": _by_item(filters.do_min),
    "replace": _replaced,
    "round": _rounded,
    "sort": _by_item(filters.do_sort),
    "tojson": _tojson,
    "trim": _trim,
    "unique": _by_item(filters.sync_do_unique),
}

FUNCTIONS: Mapping[str, Any] = {
    "dict": _dict,
    "namespace": _Names,
    "raise_exception": _raise,
    "range": _range,
    "strftime_now": _now,
}
"""What templates call by name."""
METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace
        istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit
        rstrip split splitlines startswith strip swapcase title upper""".split()
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    LoopContext: frozenset(("cycle", "changed")),
}
"""The methods of each type."""
_NAMES = """abs capitalize count d default dictsort first items last length lower map reject rejectattr
    reverse safe select selectattr string title upper""".split()
FILTERS: Mapping[str, Callable[..., Any]] = {name: JINJA_FILTERS[name] for name in _NAMES} | _OWN_FILTERS
"""The filters, of which `running().made` is still to count the results."""
TESTS: Mapping[str, Callable[..., Any]] = dict(JINJA_TESTS) | {
    name: partial(_of_number, JINJA_TESTS[name]) for name in ("odd", "even", "divisibleby")
}
"""The tests; those of numbers compute `%`, which is a format where the value is a text."""
