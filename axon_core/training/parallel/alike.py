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


def check_alike(trainer: Trainer, recipe: Mapping[str, Any] | None) -> None:
    """Check that all processes have the same recipe, versions and data.

    Raises:
        UsageError: they differ; the message names the processes and what differs.
        PeerError: another process cannot read its data.
    """
    if world() == 1:
        return
    settings = {**(recipe or {}), "trainer": trainer.config.model_dump(mode="json", exclude={"device"})}
    facts = {**dict(_flat(settings)), **_versions(trainer), "the data": together(lambda: _data(trainer))}
    # A digest of each, because the texts of a thousand processes would be long.
    first, *others = gather({name: digest(str(value)) for name, value in facts.items()})
    found: dict[str, list[int]] = {}
    for number, other in enumerate(others, 1):
        for name in sorted({**first, **other}):
            if first.get(name) != other.get(name):
                found.setdefault(name, []).append(number)
    if not found:
        return
    shown = gather({name: str(facts.get(name, "none")) for name in found if name != "the data"})
    problems = [
        f"{name}, which is {shown[0][name]} in process 0 and {shown[numbers[0]][name]} in {_list(numbers)}"
        if name in shown[0]
        else f"{name} of process 0 and {_list(numbers)}"
        for name, numbers in found.items()
    ]
    raise UsageError(
        f"the processes of a training must be alike, but they differ in {'; in '.join(problems)}. Give all the same "
        "recipe, the same installed versions and the same data"
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


def _list(numbers: list[int]) -> str:
    return f"process {numbers[0]}" if len(numbers) == 1 else f"processes {', '.join(map(str, numbers))}"


def _flat(table: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return the settings in nested tables, each with the path at which a recipe has it."""
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        found += _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else [(f"{path}{name}", value)]  # pyright: ignore[reportUnknownArgumentType]
    return found
