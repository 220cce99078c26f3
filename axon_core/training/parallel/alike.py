"""What must be the same in all processes of a training, and how a run folder describes them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from axon_core.checkpoint.digests import digest
from axon_core.errors import UsageError
from axon_core.processes import gather, together, world
from axon_core.registry import provenance
from axon_core.training.devices import describe_device
from axon_core.training.trainer import Trainer

__all__ = ["check_alike", "describe_processes"]

_DATA, _SHAPES = "the data", "the shapes of the model"  # which are compared by digests that say nothing to people


def check_alike(trainer: Trainer, recipe: Mapping[str, Any] | None, **options: Any) -> None:
    """Check that all processes have the same recipe, versions, data, kinds of models and options of the call.

    Raises:
        UsageError: they differ; the message names the processes and what differs.
        PeerError: another process cannot read its data.
    """
    if world() == 1:
        return
    settings = {**(recipe or {}), "trainer": trainer.config.model_dump(mode="json", exclude={"device"}), **options}
    facts = {**dict(_flat(settings)), **_versions(trainer), **_shapes(trainer)}
    facts[_DATA] = together(lambda: _data(trainer))
    # A digest of each, because the texts of a thousand processes would be long.
    first, *others = gather({name: digest(str(value)) for name, value in facts.items()})
    found: dict[str, list[int]] = {}
    for number, other in enumerate(others, 1):
        for name in sorted({**first, **other}):
            if first.get(name) != other.get(name):
                found.setdefault(name, []).append(number)
    if not found:
        return
    shown = gather({name: str(facts.get(name, "none")) for name in found if not name.startswith((_DATA, _SHAPES))})
    problems = [
        f"{name}, which is {shown[0][name]} in process 0 and {shown[numbers[0]][name]} in {_list(numbers)}"
        if name in shown[0]
        else f"{name} of process 0 and {_list(numbers)}"
        for name, numbers in found.items()
    ]
    raise UsageError(
        f"the processes of a training must be alike, but they differ in {'; in '.join(problems)}. Give all the same "
        "recipe, arguments, installed versions, models and data"
    )


def describe_processes(config: Trainer.Config) -> dict[str, Any]:
    """Return how many processes train, how the work is divided among them, and where each of them computes."""
    places = gather(f"{describe_device(config.device)} on {platform.node()}")
    parallel = config.parallel.model_dump(mode="json") if world() > 1 else {}
    return {"count": world(), **parallel, "places": {place: places.count(place) for place in dict.fromkeys(places)}}


def _versions(trainer: Trainer) -> dict[str, str]:
    parts = provenance.parts_of(trainer.models.values(), type(trainer))
    versions = {part["distribution"]: part["version"] for part in parts}
    versions |= {"axon-core": metadata.version("axon-core"), "torch": str(torch.__version__)}
    return {f"the version of {name}": version for name, version in versions.items()}


def _data(trainer: Trainer) -> str:
    return digest(trainer.data_digest(), trainer.batch(0))


def _shapes(trainer: Trainer) -> dict[str, str]:
    """Return a digest of the names, shapes and dtypes of the tensors of each model."""
    found: dict[str, str] = {}
    for role, model in trainer.models.items():
        tensors = (*model.named_parameters(), *model.named_buffers())
        found[f"{_SHAPES} {role}"] = digest(str([(n, tuple(t.shape), t.dtype) for n, t in tensors]))
    return found


def _list(numbers: list[int]) -> str:
    return f"process {numbers[0]}" if len(numbers) == 1 else f"processes {', '.join(map(str, numbers))}"


def _flat(table: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return the settings in nested tables, each with the path at which a recipe has it."""
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        found += _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else [(f"{path}{name}", value)]  # pyright: ignore[reportUnknownArgumentType]
    return found
