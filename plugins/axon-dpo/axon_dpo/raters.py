"""Who gave a preference: the names of raters, and their numbers as a column of a batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from axon_core import DataError

__all__ = ["Rated", "StatedPreference", "number_raters", "rater_column"]


class StatedPreference(NamedTuple):
    """Who preferred what: a comparison as a loss is told of it before training."""

    name: str
    """What to call it in a message."""
    rater: int
    """The number of who said so."""
    better: Hashable
    """The preferred text with its prompt, as tokens."""
    worse: Hashable
    """The other one."""


class Rated(Protocol):
    """A record that may name its rater, such as a comparison or a ranking."""

    @property
    def rater(self) -> str | None:
        """The rater's name."""
        ...


def number_raters(records: Sequence[Rated], names: Sequence[str]) -> tuple[tuple[str, ...], list[int | None]]:
    """Return the names of the raters in alphabetical order, and the number of each record's rater.

    Without raters, no name is returned, and each number is None.

    Args:
        records: the records.
        names: what to call each in a message.

    Raises:
        DataError: some records name their rater, and others do not.

    >>> from axon_core.text import Comparison
    >>> pair = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    >>> number_raters([Comparison(**pair, rater="Bo"), Comparison(**pair, rater="Ada")], ["row 1", "row 2"])
    (('Ada', 'Bo'), [1, 0])
    """
    given = [record.rater is not None for record in records]
    if any(given) and not all(given):
        with_one, without = names[given.index(True)], names[given.index(False)]
        raise DataError(
            f"either all rows must name their rater, or none, but {with_one} does and {without} does not; add a "
            "`rater` to the rows that have none, or remove the field from all"
        )
    raters = tuple(sorted({record.rater for record in records if record.rater is not None}))
    numbers = {name: number for number, name in enumerate(raters)}
    return raters, [None if record.rater is None else numbers[record.rater] for record in records]


def rater_column(numbers: Iterable[int | None]) -> dict[str, Int[Tensor, " b"]]:
    """Return the column `rater` of a batch; none if the data do not name their raters.

    >>> rater_column([1, 0])
    {'rater': tensor([1, 0])}
    >>> rater_column([None, None])
    {}
    """
    known = [number for number in numbers if number is not None]
    return {"rater": torch.tensor(known)} if known else {}
