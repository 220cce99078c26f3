"""Gymnasium's spaces as Axon's environments need them: an observation as a vector, an action as one of n numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

__all__ = ["Encode", "action_range", "encoder"]

_LONGEST = 2**20  # numbers in an observation, and actions, at most
Encode = Callable[[Any], np.ndarray]
"""Maps an observation to its vector, float32; raises `ValueError` if it is outside its space."""


def encoder(space: Any) -> tuple[int, Encode]:
    """Return how long the vector of an observation is, and a function that makes it.

    A vector stays as it is; each number of `Discrete` and `MultiDiscrete` becomes a one-hot vector, whose first entry
    stands for the space's `start`; a bit of `MultiBinary` is 0 or 1; the parts of `Tuple` and `Dict` follow each other.

    Raises:
        ValueError: the space is of another kind, a `Box` of more than one axis, or empty or too large.
    """
    size, encode = _encoder(space)
    if not 0 < size <= _LONGEST:
        raise ValueError(f"an observation must be a vector of 1 to {_LONGEST:,} numbers, got {size:,}: {space}")
    return size, encode


def action_range(space: Any) -> range:
    """Return the numbers of the actions.

    Raises:
        ValueError: the actions are not `Discrete`, or too many.
    """
    from gymnasium import spaces  # pyright: ignore[reportMissingImports] - an extra

    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"actions must be Discrete, one of n numbers, got {space}; wrap the environment so that each "
            "action has a number"
        )
    if space.n > _LONGEST:
        raise ValueError(f"there must be at most {_LONGEST:,} actions, got {space}")
    return range(int(space.start), int(space.start) + int(space.n))


def _encoder(space: Any) -> tuple[int, Encode]:
    from gymnasium import spaces  # pyright: ignore[reportMissingImports] - an extra

    match space:
        case spaces.Box() if len(space.shape) <= 1:
            return _numbers(space.shape)
        case spaces.MultiBinary():
            return _numbers(space.shape)
        case spaces.Discrete():
            return _one_hot([int(space.n)], [int(space.start)])
        case spaces.MultiDiscrete():
            starts = np.broadcast_to(getattr(space, "start", 0), space.nvec.shape)
            return _one_hot(space.nvec.flatten().tolist(), starts.flatten().tolist())
        case spaces.Tuple():
            return _joined({i: _encoder(part) for i, part in enumerate(space.spaces)})
        case spaces.Dict():
            return _joined({name: _encoder(part) for name, part in space.spaces.items()})
        case _:
            raise ValueError(
                "an observation must be a Box of at most one axis, Discrete, MultiDiscrete or MultiBinary, or a Tuple "
                f"or Dict of these, got {space}; wrap the environment so that it shows one"
            )


def _numbers(shape: tuple[int, ...]) -> tuple[int, Encode]:
    def encode(observation: Any) -> np.ndarray:
        found = np.asarray(observation, dtype=np.float32)
        if found.shape != shape:
            raise ValueError(f"shape {found.shape}")
        return found.reshape(-1)

    return prod(shape), encode


def _one_hot(sizes: list[int], starts: list[int]) -> tuple[int, Encode]:
    size = sum(sizes)

    def encode(observation: Any) -> np.ndarray:
        numbers = np.asarray(observation).reshape(-1).tolist()
        found, first = np.zeros(size, dtype=np.float32), 0
        for number, start, n in zip(numbers, starts, sizes, strict=True):
            if not 0 <= number - start < n:
                raise ValueError(f"number {number}")
            found[first + number - start] = 1
            first += n
        return found

    return size, encode


def _joined(parts: dict[Any, tuple[int, Encode]]) -> tuple[int, Encode]:
    def encode(observation: Any) -> np.ndarray:
        if len(observation) != len(parts):
            raise ValueError(f"{len(observation)} parts")
        vectors = [encode(observation[name]) for name, (_, encode) in parts.items()]
        return np.concatenate([np.zeros(0, dtype=np.float32), *vectors])

    return sum(size for size, _ in parts.values()), encode
