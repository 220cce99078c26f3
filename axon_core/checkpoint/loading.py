"""Stored tensors given to modules and optimisers, one at a time, each process reading its own part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from axon_core.checkpoint.overlays import own_state
from axon_core.checkpoint.stored import StoredTensor

__all__ = ["load_module", "placed"]


def placed(value: Any, parameter: Shaped[Tensor, ...]) -> Any:
    """Return something that an optimiser keeps for a parameter, or its average, as it is to be in this process.

    A tensor of the parameter's shape is spread as the parameter is; others are whole, and no tensor stays so.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if isinstance(value, StoredTensor):
        return value.like(parameter) if value.shape == parameter.shape else value.read().to(parameter.device)
    return value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value


def load_module(module: nn.Module, state: Mapping[str, Any]) -> str | None:
    """Give a module what `own_state` returned, or a checkpoint's `StoredTensor`s; or return why it does not fit.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    own = own_state(module)
    for name, tensor in own.items():
        if name not in state:
            return f"{name} is missing"
        theirs, ours = (tuple(getattr(value, "shape", ())) for value in (state[name], tensor))
        if theirs != ours:
            return f"size mismatch for {name}: {theirs} in the checkpoint, {ours} in the model"
    if more := sorted(state.keys() - own.keys()):
        return f"{more[0]} is not among its tensors"
    for name, tensor in own.items():
        path, _, attribute = name.rpartition(".")
        value = state[name]
        given = value.like(tensor) if isinstance(value, StoredTensor) else value
        # Through the module, which may make something else of it.
        module.get_submodule(path).load_state_dict({attribute: given}, strict=False)
    return None
