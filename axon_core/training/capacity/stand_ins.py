"""Tensors that stand for a trainer's weights for a while: without numbers, or with the rows of one rank alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from axon_core.training.trainer import Trainer

__all__ = ["fake_weights", "local_shards", "shard_rows"]


def shard_rows(rows: int, ranks: int) -> int:
    """Return how many of a parameter's rows rank 0 holds, which is the most that any rank holds: ⌈rows / ranks⌉.

    >>> shard_rows(10, 4), shard_rows(1, 8)
    (3, 1)
    """
    return -(-rows // ranks)


@contextmanager
def fake_weights(trainer: Trainer) -> Generator[None]:
    """Within the block all parameters are fake tensors on the trainer's device: shapes and dtypes without memory.

    So are buffers that are on the meta device; others keep their numbers, from which positions and masks are computed.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor, trained: bool) -> Tensor:
        if isinstance(tensor, FakeTensor) or not (isinstance(tensor, nn.Parameter) or tensor.is_meta):
            return tensor
        with mode:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=trainer.config.device)
        return nn.Parameter(made, tensor.requires_grad and trained) if isinstance(tensor, nn.Parameter) else made

    with _replaced(trainer, fake):
        for model in trainer.models.values():
            model.__dict__["to"] = partial(_staying, model)  # they are there, and torch cannot move them
        try:
            yield
        finally:
            for model in trainer.models.values():
                model.__dict__.pop("to", None)


@contextmanager
def local_shards(
    trainer: Trainer, workers: int, axes: Mapping[int, int] | None = None, tensor: int = 1
) -> Generator[None]:
    """Within the block each parameter has the rows that rank 0 holds, on the meta device.

    A parameter without axes is not split, nor is a buffer.

    Args:
        trainer: whose models have them.
        workers: how many share the rows of each parameter.
        axes: the axis along which a parameter, by its identity, is divided among the ranks of a worker before.
        tensor: how many ranks those are.
    """
    divided = axes or {}

    def shard(whole: Tensor, trained: bool) -> Tensor:
        if not isinstance(whole, nn.Parameter) or not whole.ndim:
            return whole
        shape = [size // tensor if divided.get(id(whole)) == axis else size for axis, size in enumerate(whole.shape)]
        local = torch.empty(shard_rows(shape[0], workers), *shape[1:], dtype=whole.dtype, device="meta")
        return nn.Parameter(local, whole.requires_grad)

    with _replaced(trainer, shard):
        yield


def _staying(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    return model


@contextmanager
def _replaced(trainer: Trainer, replace: Callable[[Tensor, bool], Tensor]) -> Generator[None]:
    """Within the block the models have, for each tensor, what `replace(tensor, whether it is trained)` returns."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: tied parameters stay one
    for role in sorted(
        trainer.models, key=lambda role: role not in trainer.trainable
    ):  # what two roles share is trained
        for tensor in (*trainer.models[role].parameters(), *trainer.models[role].buffers()):
            if id(tensor) not in made:
                made[id(tensor)] = tensor, replace(tensor, role in trainer.trainable)
    places = [
        (module, name, tensor)
        for module in {module for model in trainer.models.values() for module in model.modules()}
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    for module, name, tensor in places:
        setattr(module, name, made[id(tensor)][1])
    try:
        yield
    finally:
        for module, name, tensor in places:
            setattr(module, name, tensor)
