"""Which modules are a unit of sharding: gathered, computed and freed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from axon_core.nn.dropout import replayed_dropout

__all__ = ["checkpoint_activations", "sharding_units"]


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Return the units of a model: what its method `sharding_units` returns, or by default its repeated layers.

    Those are the elements of its `nn.ModuleList`s, outermost lists only; what has no parameters is left out.
    """
    if callable(method := getattr(model, "sharding_units", None)):
        found = cast(Iterable[nn.Module], method())
    else:
        found = _elements(model)
    return list({id(unit): unit for unit in found if any(True for _ in unit.parameters())}.values())


def _elements(module: nn.Module) -> Iterable[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _elements(child)


def checkpoint_activations(units: Sequence[nn.Module]) -> None:
    """Let each unit keep only its inputs for the backward pass, which computes the rest again."""
    for unit in units:
        unit.forward = partial(_checkpointed, unit.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return `forward(…)`, computed again in the backward pass with the same dropout."""
    again = {} if torch.compiler.is_compiling() else {"context_fn": replayed_dropout}  # compiled masks are the same
    return checkpoint(forward, *args, use_reentrant=False, **again, **options)
