"""What the ranks of a worker compute together: operations, what is kept of them, and what is summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

__all__ = ["Divided"]


class Divided:
    """Watches, within its block, modules that ranks compute together.

    Args:
        parts: the modules, none inside another.
        among: how many ranks there are.
        flops: returns the floating-point operations so far.

    Attributes:
        flops: the operations in their forward passes, of all ranks.
        results: the bytes of their results.
        inputs: the bytes of their inputs that have gradients.
    """

    def __init__(self, parts: Sequence[nn.Module], among: int, flops: Callable[[], int]) -> None:
        self.flops = self.results = self.inputs = 0
        self._parts, self._among, self._count = parts, among, flops
        self._inside = False
        self._begun = 0
        self._whole: set[StorageWeakRef] = set()
        self._divided: set[StorageWeakRef] = set()

    def __enter__(self) -> Divided:
        self._handles = [
            handle
            for part in self._parts
            for handle in (
                part.register_forward_pre_hook(self._enter, with_kwargs=True),
                part.register_forward_hook(self._leave, always_call=True),
            )
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def meet(self, storage: StorageWeakRef) -> None:
        """Note whether a storage is that of a rank's part, which is so if it is first met inside of a module."""
        if storage not in self._whole:
            (self._divided if self._inside else self._whole).add(storage)

    def parts_of(self, storage: StorageWeakRef) -> int:
        """Return in how many equal parts ranks have what is in a storage."""
        return self._among if storage in self._divided and storage not in self._whole else 1

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            self._whole.add(StorageWeakRef(tensor.untyped_storage()))
            self.inputs += tensor.nbytes * tensor.requires_grad
        self._inside, self._begun = True, self._count()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = False
        self.flops += self._count() - self._begun
        for tensor in (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
            self._whole.add(StorageWeakRef(tensor.untyped_storage()))
            self.results += tensor.nbytes
