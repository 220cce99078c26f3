"""Names of picture classes: their order, and the number that each name stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from axon_core import UsageError

__all__ = ["Classes", "captions", "class_number", "in_order", "listed"]

Classes = int | str | Sequence[int | str]
"""A class by its number or name: one for all pictures, or one per picture."""

_NUMBER = re.compile(r"[+-]?[0-9]+")
_LISTED = 20  # most names in a message


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order in which classes are numbered: whole numbers by value, then the others as text.

    >>> in_order(["10", "9", "cats", "100"])
    ('9', '10', '100', 'cats')
    """
    return tuple(sorted(set(names), key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name)))


def class_number(label: int | str, names: Sequence[str]) -> int:
    """Return the number of a class, which is its index in `names`.

    A string is a class's name. If no name is itself a number, a string may also be the class's number.

    >>> class_number("dogs", ["cats", "dogs"]), class_number("1", ["cats", "dogs"]), class_number("1", ["1", "2"])
    (1, 1, 0)

    Raises:
        UsageError: there is no such class; the message lists the ones that exist.
    """
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if not _is_number(label) or any(map(_is_number, names)):
            near = difflib.get_close_matches(label, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"the classes of this model are {listed(names)}, got {label!r}{hint}")
    if not 0 <= int(label) < len(names):
        raise UsageError(
            f"the classes of this model are {listed(names)}, numbered 0 to {len(names) - 1}, got {int(label)}"
        )
    return int(label)


def captions(n: int, names: Sequence[str], classes: Classes | None = None) -> list[str]:
    """Return the names of n pictures' classes, by default all classes in turn; empty if classes have no names.

    >>> captions(3, ["cats", "dogs"]), captions(2, ["cats", "dogs"], "dogs"), captions(2, [])
    (['cats', 'dogs', 'cats'], ['dogs', 'dogs'], [])

    Raises:
        UsageError: there is no such class.
    """
    if not names:
        return []
    if classes is None:
        return [names[i % len(names)] for i in range(n)]
    each = [classes] * n if isinstance(classes, int | str) else classes
    return [names[class_number(label, names)] for label in each]


def listed(names: Sequence[str]) -> str:
    """Return the names on one line, only the first 20 if there are more.

    >>> listed(["cats", "dogs"])
    'cats, dogs'
    """
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None
