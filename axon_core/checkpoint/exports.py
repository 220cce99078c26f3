"""The weights that a trainer's `export` saves while a checkpoint is made, written when the checkpoint's tensors are.

Each is read from the checkpoint one tensor at a time, so no process holds the model, and training may continue.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from axon_core.checkpoint.pieces import whole
from axon_core.checkpoint.tensor_files import Readable
from axon_core.processes import is_first, is_spread

__all__ = ["Gathered", "Later"]

Write = Callable[[Mapping[str, Tensor | Readable]], None]


class Gathered:
    """A tensor spread over processes, which all of them put together when it is read, in the same order."""

    def __init__(self, tensor: Shaped[Tensor, ...]) -> None:
        self._tensor, self._is_read = tensor, False
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype: torch.dtype = tensor.dtype

    def read(self) -> Shaped[Tensor, ...]:
        """Return it."""
        self._is_read = True
        return whole(self._tensor)

    def take_part(self) -> None:
        """Help the others to put it together, unless it was read here."""
        if not self._is_read:
            self.read()


class Later:
    """What is to be written once the tensors of a checkpoint are on disk.

    Args:
        names: the tensors of the training state, by the names that they have in the checkpoint.
    """

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        self._known = {id(tensor): (name, tensor._version) for name, tensor in names.items()}
        self._alive = list(names.values())  # what has an id here
        self._waiting: list[tuple[dict[str, Tensor | str], Write]] = []

    @staticmethod
    def current() -> Later | None:
        """Return what `save_model` is to leave its weights to, or None if it is to write them."""
        return _current.get()

    @contextmanager
    def active(self) -> Generator[None]:
        """Within the block, `save_model` leaves its weights to this."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def add(self, tensors: Mapping[str, Tensor], write: Write) -> None:
        """Have `write` called with the values that these tensors have now; all processes call it alike.

        One that is in the checkpoint as it is now is read from there; any other is copied, such as one that the trainer
        changes for the time of the export.
        """
        kept: dict[str, Tensor | str] = {}
        for name, tensor in tensors.items():
            place, version = self._known.get(id(tensor), ("", None))
            if version == tensor._version:  # which grows with every operation that changes the tensor
                kept[name] = place
            elif is_spread(tensor) or is_first():
                copied = whole(tensor)
                kept[name] = copied.to("cpu", copy=True) if is_first() else copied.new_empty(0)
        self._waiting.append((kept, write))

    def write(self, stored: Mapping[str, Readable]) -> None:
        """Write everything, with what is in the checkpoint read from `stored`; only the first process calls it."""
        for kept, write in self._waiting:
            write({name: stored[found] if isinstance(found, str) else found for name, found in kept.items()})
        self._waiting.clear()


_current: ContextVar[Later | None] = ContextVar("later", default=None)
