"""The keys of a GGUF file, each read as the type that it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from axon_core import CheckpointError

__all__ = ["Keys"]

_Given = TypeVar("_Given")
_MOST = (1 << 63) - 1


@dataclass(frozen=True)
class Keys:
    """What a GGUF file says about its model, by key.

    Each method returns the value of a key, or None if the file does not have it. The error has key, value and remedy.
    """

    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        """Return a text. Raises `CheckpointError` if it is not."""
        return self._typed(key, "a text", lambda value: isinstance(value, str))

    def flag(self, key: str) -> bool | None:
        """Return true or false. Raises `CheckpointError` if it is not."""
        return self._typed(key, "true or false", lambda value: isinstance(value, bool))

    def count(self, key: str, *, least: int = 1, most: int = _MOST) -> int | None:
        """Return a whole number within bounds. Raises `CheckpointError` if it is not."""
        what = f"a whole number from {least:,} to {most:,}" if most < _MOST else f"a whole number from {least:,} on"
        return self._typed(key, what, lambda value: type(value) is int and least <= value <= most)

    def number(self, key: str, *, least: float | None = None) -> float | None:
        """Return a finite number of at least `least`; by default one above 0. Raises `CheckpointError` if it is not."""
        what = "a number above 0" if least is None else f"a number of at least {least:g}"
        return self._typed(
            key,
            what,
            lambda value: _is_number(value) and (value > 0 if least is None else value >= least),
        )

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts. Raises `CheckpointError` if it is not."""
        return self._list(key, "texts", lambda value: isinstance(value, str))

    def counts(self, key: str) -> list[int] | None:
        """Return a list of whole numbers. Raises `CheckpointError` if it is not."""
        return self._list(key, "whole numbers", lambda value: type(value) is int)

    def numbers(self, key: str) -> list[float] | None:
        """Return a list of finite numbers. Raises `CheckpointError` if it is not."""
        return self._list(key, "numbers", _is_number)

    @staticmethod
    def needed(key: str, value: _Given | None) -> _Given:
        """Return the value of a key that a file must have. Raises `CheckpointError` if it is None."""
        if value is None:
            raise CheckpointError(f"the GGUF file has no {key}; convert the model to a GGUF file again")
        return value

    def _list(self, key: str, what: str, fits: Callable[[Any], bool]) -> Any:
        return self._typed(
            key, f"a list of {what}", lambda value: isinstance(value, list) and all(fits(each) for each in value)
        )

    def _typed(self, key: str, what: str, fits: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if value is None or fits(value):
            return value
        raise CheckpointError(f"{key} must be {what}, got {value!r:.60}; convert the model to a GGUF file again")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
