"""Which linear maps of a model have an adapter: those whose place in it a target names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from axon_core import ConfigError
from axon_core.interfaces import Model
from axon_core.nn import QuantizedLinear, StackedLinear, TiedLinear

__all__ = ["ALL", "Map", "Target", "find_targets", "inputs_of", "linear_maps", "within"]

Map = nn.Linear | QuantizedLinear
ALL = "all"
"""The target that stands for every linear map but the output head."""


@dataclass(frozen=True)
class Target:
    """A matrix that is adapted: a linear map, or one of those that a `StackedLinear` holds.

    Attributes:
        map: the place of the map in the model.
        place: that of the matrix: `map`, and its name in the stack if it is in one.
        module: the map.
        part: its number in the stack, else 0.
        rows: where its outputs are among the weight's rows.
    """

    map: str
    place: str
    module: Map
    part: int
    rows: slice

    @property
    def rank_at_most(self) -> int:
        """The largest rank that an update can have."""
        return min(inputs_of(self.module), self.rows.stop - self.rows.start)


def inputs_of(module: Map) -> int:
    """Return how many features a map takes."""
    return module.in_features if isinstance(module, nn.Linear) else module.inputs


def linear_maps(model: nn.Module) -> dict[str, Map]:
    """Return the linear maps of a model by their place, without its output head and those that share a weight."""
    tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding | TiedLinear)}
    maps = {name: part for name, part in model.named_modules() if isinstance(part, Map)}
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    # A hidden map may have as many outputs as there are tokens; `hidden_matrices` leaves out the head.
    hidden = {id(weight) for weight in model.hidden_matrices()} if isinstance(model, Model) else set[int]()
    head = {
        name
        for name, part in maps.items()
        if isinstance(part, nn.Linear) and part.out_features == vocabulary and id(part.weight) not in hidden
    }
    return {name: part for name, part in maps.items() if id(part.weight) not in tied and name not in head}


def find_targets(model: Model, targets: Collection[str]) -> list[Target]:
    """Return the matrices that the targets name in a model, in its order.

    A target is one or several names that follow each other in a matrix's place: `attention`, `blocks.0`,
    `qkv.projection.q`, or `q` alone. `all` is every linear map but the output head; a head that is not tied to the
    embedding can be named.

    Raises:
        ConfigError: a target names nothing; the message lists what there is. Or it names a tied head.
    """
    body = linear_maps(model)
    maps = {name: part for name, part in model.named_modules() if isinstance(part, Map)}
    everything = [target for name, module in maps.items() for target in _matrices(name, module)]
    found: dict[str, Target] = {}
    for asked in targets:
        named = [t for t in everything if (t.map in body if asked == ALL else within(asked, t.place))]
        if not named:
            raise ConfigError([(("targets",), f"must name linear maps, got {asked!r}, and there are {_known(body)}")])
        for target in named:
            if target.map not in body and _is_tied(model, target.module):
                rule = f"must not name {target.map}, whose weight is the embedding's too: an update would change both"
                raise ConfigError([(("targets",), f"{rule}, got {asked!r}; leave it out, or untie the model")])
            found[target.place] = target
    return [target for target in everything if target.place in found]


def _outputs(module: Map) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.outputs


def _matrices(name: str, module: Map) -> list[Target]:
    if not isinstance(module, StackedLinear | QuantizedLinear) or module.rows is None:
        return [Target(name, name, module, 0, slice(0, _outputs(module)))]
    ends = [0, *accumulate(module.rows)]
    return [
        Target(name, f"{name}.{part}", module, i, slice(ends[i], ends[i + 1])) for i, part in enumerate(module.names)
    ]


def within(target: str, place: str) -> bool:
    """Return whether the names in `target` follow each other in a place of the model."""
    return f".{target}." in f".{place}."


def _is_tied(model: nn.Module, module: Map) -> bool:
    return any(isinstance(part, nn.Embedding | TiedLinear) and part.weight is module.weight for part in model.modules())


def _known(maps: dict[str, Map]) -> str:
    """Return what targets could be named, shortly: each name in a place once, numbers left out."""
    names: dict[str, None] = {ALL: None}
    for place, module in maps.items():
        parts: Sequence[str] = module.names if isinstance(module, StackedLinear | QuantizedLinear) else []
        names |= dict.fromkeys(part for part in (*place.split("."), *parts) if not part.isdecimal())
    return ", ".join(names)
