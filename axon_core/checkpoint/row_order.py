"""The order of rows in tensors that hold several matrices and are divided among processes, each matrix by itself.

A process has the j-th part of every matrix, so a `DTensor` that is sharded by rows has them in another order than the
model: the first parts of all matrices, then the second parts, and so on. Files have the model's order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["divided_order", "in_model_order", "keep_order", "order_of"]

_orders = WeakTensorKeyDictionary()  # of tensors that have one, for as long as they live


def divided_order(rows: Sequence[int], among: int) -> Int[Tensor, " r"]:
    """Return the rows, by their numbers in the model, of matrices with so many rows each, divided `among` processes.

    Each of `rows` must be a multiple of `among`.

    >>> divided_order([4, 2], 2).tolist()
    [0, 1, 4, 2, 3, 5]
    """
    matrices = [matrix.chunk(among) for matrix in torch.arange(sum(rows)).split(list(rows))]
    return torch.cat([matrix[process] for process in range(among) for matrix in matrices])


def keep_order(tensor: Shaped[Tensor, ...], order: Int[Tensor, " r"] | None) -> None:
    """Note the order of a tensor's rows, or of one that belongs to it, such as its momentum; None is the model's."""
    if order is not None:
        _orders[tensor] = order


def order_of(tensor: Shaped[Tensor, ...]) -> Int[Tensor, " r"] | None:
    """Return which row of the model each row of a tensor is, or None if they are in the model's order."""
    return _orders.get(tensor)


def in_model_order(rows: Shaped[Tensor, "r ..."], order: Int[Tensor, " r"] | None) -> Shaped[Tensor, "r ..."]:
    """Return rows that are in another order in that of the model."""
    return rows if order is None else torch.empty_like(rows).index_copy_(0, order.to(rows.device), rows)
