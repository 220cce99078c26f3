"""Losses that a part of a model adds to that of any trainer, such as the load balance of a mixture of experts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

__all__ = ["add_auxiliary_loss", "auxiliary_losses"]

_collecting: list[dict[str, Tensor]] = []


def add_auxiliary_loss(name: str, total: Float[Tensor, ""]) -> None:
    """Have `total` minimised beside the loss of the pass that runs, if it has a gradient and anyone trains.

    The terms of one name are added up, those of several layers too. A training divides the sum by its number of
    examples, over all processes and micro-batches; it is reported as `auxiliary_<name>`.

    Args:
        name: a short word, such as `balance`.
        total: the sum over the rows of the batch, times its coefficient. A row's part must not depend on other rows,
            so that the update does not depend on how a batch is cut.
    """
    if _collecting and total.requires_grad:
        found = _collecting[-1]
        found[name] = found[name] + total if name in found else total


@contextmanager
def auxiliary_losses() -> Generator[dict[str, Tensor]]:
    """Within the block, collect what the models' parts add, in the dictionary that is returned."""
    _collecting.append({})
    try:
        yield _collecting[-1]
    finally:
        _collecting.pop()
