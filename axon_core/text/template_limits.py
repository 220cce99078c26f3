"""How much a chat template may do: it looks at the clock and counts what it makes, in each of its steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, MappingView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

__all__ = ["CHARACTERS", "ITEMS", "VALUE", "TemplateCount", "TemplateExcess", "counting", "running", "size_of"]

CHARACTERS = 1 << 22
"""The most characters in a text that a template makes."""
VALUE = 1 << 23
"""The most bytes in a text or list that it makes."""
ITEMS = VALUE // 64
"""The most items in a list that it makes of something else, such as the pieces of a text."""
_SECONDS, _ALL, _DEPTH = 2.0, 1 << 28, 32
"""How long a template may run, the most bytes in all that it makes, and how deep lists may nest."""


class TemplateExcess(Exception):
    """The template breaks a rule; the message says what it does."""


class TemplateCount:
    """How long a template has run, and how much it has made."""

    def __init__(self) -> None:
        self._end, self._bytes = time.monotonic() + _SECONDS, 0

    def tick(self) -> None:
        """Raise `TemplateExcess` if the time is over."""
        if time.monotonic() > self._end:
            raise TemplateExcess(f"runs for more than {_SECONDS:g} seconds")

    def made(self, value: Any) -> Any:
        """Return a value that the template made, if there was room for it.

        The room for all values counts the parts of a list as references, because they were counted when they were made.

        Raises:
            TemplateExcess: there was not.
        """
        self.tick()
        if isinstance(value, str):
            self._spend(size_of(value))
        elif isinstance(value, list | tuple | dict):
            size_of(cast("object", value))
            self._spend(sys.getsizeof(value) + 64 * len(cast("list[Any]", value)))
        return value

    def pieces(self, value: Any) -> Any:
        """Return a list of new texts, as `made` does.

        Raises:
            TemplateExcess: there was no room for them.
        """
        self._spend(size_of(value))
        return self.made(value)

    def joined(self, parts: Iterable[object], separator: str = "") -> str:
        """Return the texts of `parts` as one.

        Raises:
            TemplateExcess: it has more than `CHARACTERS`, or there is no room for it.
        """
        texts, room = list[str](), CHARACTERS
        for part in parts:
            self.tick()
            texts.append(str(part))
            room -= len(texts[-1]) + len(separator)
            if room < 0:
                raise TemplateExcess(f"makes a text of more than {CHARACTERS:,} characters")
        return self.made(separator.join(texts))

    def each(self, values: Iterable[Any]) -> Generator[Any]:
        """Yield the values, and look at the clock before each.

        Raises:
            TemplateExcess: there are more than `ITEMS`, or the time is over.
        """
        for number, value in enumerate(values):
            self.tick()
            if number == ITEMS:
                raise TemplateExcess(f"makes a list of more than {ITEMS:,} items")
            yield value

    def _spend(self, size: int) -> None:
        self._bytes += size
        if self._bytes > _ALL:
            raise TemplateExcess(f"makes more than {_ALL >> 20} MiB of texts and lists")


_COUNT: ContextVar[TemplateCount] = ContextVar("count")


def running() -> TemplateCount:
    """Return the count of the template that runs in this thread."""
    return _COUNT.get()


@contextmanager
def counting() -> Generator[None]:
    """Count what a template does within the block."""
    token = _COUNT.set(TemplateCount())
    try:
        yield
    finally:
        _COUNT.reset(token)


def size_of(value: object) -> int:
    """Return the bytes of a value written out: a part that occurs twice counts twice.

    Raises:
        TemplateExcess: there are too many, or lists nest too deep.
    """
    size, left = 0, [(value, 0)]
    while left:
        item, depth = left.pop()
        size += sys.getsizeof(item)
        if size > VALUE:
            raise TemplateExcess(f"makes a text or list of more than {VALUE >> 20} MiB")
        if depth > _DEPTH:
            raise TemplateExcess(f"nests lists more than {_DEPTH} deep")
        if isinstance(item, dict):
            pairs = cast("dict[object, object]", item).items()
            left += [(part, depth + 1) for pair in pairs for part in pair]
        elif isinstance(item, list | tuple | MappingView):
            left += [(part, depth + 1) for part in cast("Iterable[object]", item)]
    return size
