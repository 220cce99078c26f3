"""The modules of a training by their roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from axon_core.errors import ContractError

__all__ = ["require_role"]

M = TypeVar("M", bound=nn.Module)


def require_role(models: Mapping[str, nn.Module], name: str, kind: type[M], trainer: str) -> M:
    """Return the module in the role `name`, as the kind that the trainer of that key needs.

    Raises:
        ContractError: it is of another kind.
    """
    model = models[name]
    if not isinstance(model, kind):
        raise ContractError(
            f"the trainer {trainer} needs a {kind.__name__} as its {name}, got a {type(model).__name__}"
        )
    return model
