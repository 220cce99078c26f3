"""Which parts each layer of an X-Llama has: a pattern over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Self

from pydantic import PositiveInt, model_validator

from axon_core import config
from axon_core.registry import Spec

__all__ = ["LayerPattern", "layer_part", "unreached"]

NO_ROTARY = "none"
"""The rotary embedding of a layer that rotates nothing."""


class LayerPattern(config.Config):
    """Parts of every n-th layer; those that are left out are the model's."""

    every: PositiveInt = 1
    """Of so many layers, the last: with 4 the layers 3, 7, 11 … counted from 0."""
    attention: Spec | None = None
    """The attention."""
    rotary: Spec | None = None
    """The rotary embedding; `none` for positions that are not encoded."""
    feed_forward: Spec | None = None
    """The feed-forward."""

    @model_validator(mode="after")
    def _rotates_nothing(self) -> Self:
        if self.rotary is not None and self.rotary.type == NO_ROTARY and self.rotary.options:
            raise ValueError(f"rotary none has no options, got {', '.join(self.rotary.options)}; remove them")
        return self


def layer_part(model: config.Config, patterns: Sequence[LayerPattern], layer: int, name: str) -> tuple[Spec, list[str]]:
    """Return the part `name` of a layer, and where the config says it: the first pattern with that layer decides.

    Args:
        model: the model's config, whose field `name` holds if the pattern does not say.
        patterns: those of the model, in their order.
        layer: counted from 0.
        name: a field of `LayerPattern`.
    """
    for number, pattern in enumerate(patterns):
        if (layer + 1) % pattern.every == 0:
            found: Spec | None = getattr(pattern, name)
            if found is not None:
                return found, ["layers", str(number), name]
            break
    return getattr(model, name), [name]


def unreached(patterns: Sequence[LayerPattern], n_layers: int) -> list[int]:
    """Return the numbers of the patterns that decide nothing, since no layer has them or all are an earlier one's."""
    deciding = (
        next((number for number, pattern in enumerate(patterns) if (layer + 1) % pattern.every == 0), None)
        for layer in range(min(n_layers, lcm(*(pattern.every for pattern in patterns))))  # after which they repeat
    )
    return sorted(set(range(len(patterns))) - set(deciding))
