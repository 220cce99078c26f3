"""How a part can be divided among processes that compute each example together (tensor parallelism)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TensorSplit"]


@dataclass(frozen=True)
class TensorSplit:
    """How the linear layers of a part are divided: what its method `tensor_split` returns.

    Process j of n has the j-th part of every matrix. It computes the part on the same input x with these weights alone,

        part(x) = Σ_j rows_j(f(columns_j(x))),

    so between `columns` and `rows` each unit must be computed by itself, as heads are, and the result must be that of
    `rows`. The sizes in the forward pass must be taken from its tensors, because a process has n times fewer units. All
    other parameters of the part are whole in each process. Nothing in it may be drawn at random.

    Attributes:
        columns: paths of submodules whose linear layers have their output features divided.
        rows: paths of submodules whose linear layers have their input features divided.
        units: how many equal units there are; the number of processes must divide it.
        unit: what they are, in the plural, for messages.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    units: int
    unit: str
