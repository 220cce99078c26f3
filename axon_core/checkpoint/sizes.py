"""Sizes that a file claims, compared with the tensors it holds before any memory is allocated."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from axon_core.errors import CheckpointError, UsageError

__all__ = ["Bound", "within_memory"]

_SLACK = 4  # a constructor may draw a matrix that it then replaces by a tied one
_FEW, _SMALL = (
    64,
    1 << 20,
)  # tensors, and numbers in all, that any model may have: what is wrong with them is then named
_MOST = 1 << 13  # tensors of all models that are trained together
_TABLE = 1 << 26  # numbers of a table that no file holds, such as one of positions: 256 MiB in float32


class Bound(TorchDispatchMode):
    """Stops a model that is being built as soon as it outgrows the tensors that it is to take.

    A config of a few bytes can ask for 10¹² layers, or for a matrix larger than the memory. Inside the block, tensors
    are refused before they are allocated, and parameters as soon as there are too many.

    Args:
        sizes: how many numbers each of the tensors has.

    Raises:
        CheckpointError: in the block, if the model is several times as large as all tensors.
    """

    def __init__(self, sizes: Collection[int]) -> None:
        super().__init__()
        self._held = sum(sizes)
        self._numbers, self._tensors = max(_SMALL, _SLACK * self._held), max(_FEW, _SLACK * len(sizes))
        self._largest = max(self._numbers, _TABLE)

    def count(self, parameter: nn.Parameter) -> None:
        """Count a parameter that the model has registered."""
        self._tensors -= 1
        self._numbers -= parameter.numel()
        if self._tensors < 0 or self._numbers < 0:
            raise self._outgrown()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch, unless its result is too large."""
        if _numbers_made(func, args) > self._largest:
            raise self._outgrown()
        return func(*args, **(kwargs or {}))

    def _outgrown(self) -> CheckpointError:
        return CheckpointError(
            f"the sizes in the config need a much larger model than the one in the file ({self._held:,} numbers)"
        )


@contextmanager
def within_memory() -> Generator[None]:
    """Refuse modules that this machine cannot hold, as they are built and before numbers are drawn for them.

    Raises:
        UsageError: in the block, if parameters take more than the machine's memory, or there are more than 8,192.
    """
    memory, held, tensors = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal held, tensors
        if parameter is None or parameter.is_meta:
            return
        held, tensors = held + parameter.nbytes, tensors + 1
        if held > memory:
            raise UsageError(f"the models need more memory than this machine has, {memory:,} bytes; make them smaller")
        if tensors > _MOST:
            raise UsageError(f"the models must have at most {_MOST:,} tensors; use fewer layers")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _numbers_made(func: Any, args: tuple[Any, ...]) -> int:
    """Return how many numbers the result of an operation has, if it may have more than each of its arguments."""
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    if torch.Tag.pointwise in func.tags and tensors:
        return prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    if tensors or not args:
        return 0
    if isinstance(args[0], list | torch.Size):  # a shape, of empty, zeros, randn, …; or the tensors that stack takes
        numbers = cast(Sequence[Any], args[0])
        return 0 if any(isinstance(number, Tensor) for number in numbers) else prod(numbers)
    if "arange" in func.name():
        bounds = [argument for argument in args if isinstance(argument, int | float)]
        start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
        return int((end - start) / step)
    return 0
