"""Which parts each layer of an X-Llama has: a pattern over the layers."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt

from axon_core import config
from axon_core.registry import Spec

__all__ = ["LayerPattern", "layer_part"]

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
