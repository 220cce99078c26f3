"""Weights without waste: models built before their weights are there, and files read one tensor at a time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["load_weights", "read_tensor", "weightless"]


@contextmanager
def weightless() -> Generator[None]:
    """Build modules whose parameters have a shape and no memory: they are on the meta device, and never initialised.

    Only parameters are: a buffer or a constant that a module computes for itself, and that no file holds, is real.

    >>> with weightless():
    ...     layer = nn.Linear(1000, 1000)
    >>> layer.weight.device
    device(type='meta')
    """
    moved = WeakTensorKeyDictionary()  # a parameter of two modules stays one

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        if parameter not in moved:
            moved[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        return moved[parameter]

    handle = register_module_parameter_registration_hook(to_meta)  # pyright: ignore[reportArgumentType] - it may return
    try:
        yield
    finally:
        handle.remove()


def load_weights(model: nn.Module, file: Path) -> None:
    """Give `model`, as `weightless` builds it, the tensors of a safetensors file, in the dtype they have there.

    Tensors that are one and the same in the model, such as tied weights, stay so; the file holds them once. Memory: the
    model, and one tensor.

    Raises:
        RuntimeError: names or shapes do not agree.
        SafetensorError: the file is damaged.
    """
    shared: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    with safe_open(file, "pt") as opened:
        stored = set(opened.keys())
    state: dict[str, Tensor] = {}
    for names in shared.values():
        if kept := next((name for name in names if name in stored), None):
            state |= dict.fromkeys(names, read_tensor(file, kept))
            stored.discard(kept)
    state |= dict.fromkeys(stored, torch.empty(0))  # unexpected ones, for `load_state_dict` to list
    model.load_state_dict(state, assign=True)
    for first, *others in shared.values():
        for name in others:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, _find(model, first))


def read_tensor(file: Path, name: str, rows: slice | None = None) -> Shaped[Tensor, ...]:
    """Return a tensor of a safetensors file, or some of its rows, in memory of its own.

    The file is opened for each, so that the part of it that was read does not stay in memory beside the tensor.
    """
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]
        return tensor.clone()


def _find(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute)
