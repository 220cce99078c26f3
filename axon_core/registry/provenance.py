"""Which installed parts something was built from, and whether they are here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import metadata

from torch import nn

from axon_core.errors import AxonError, CheckpointError
from axon_core.registry.environment_lock import is_by_hand
from axon_core.registry.registry import registries
from axon_core.registry.suggest import known_papers

__all__ = ["class_of", "key", "parts_of", "require"]


def parts_of(modules: Iterable[nn.Module], *classes: type) -> list[dict[str, str]]:
    """Return group, key, distribution and version of every registered class among `classes` and in `modules`."""
    used = {*classes, *(class_of(part) for module in modules for part in module.modules())}
    packages = {cls.__module__.partition(".")[0] for cls in used}
    found: list[dict[str, str]] = []
    for registry in registries():
        for entry in registry.entries():
            # If the package is already imported, looking up the entry runs no foreign code.
            if entry.target.partition(":")[0].partition(".")[0] in packages:
                part = {name: getattr(entry, name) for name in ("group", "key", "distribution", "version")}
                try:
                    if registry[key(part)] in used:
                        found.append(part)
                except AxonError:  # broken, so nothing can be made of it
                    continue
    return found


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return a module's class as its author wrote it: `fully_shard` gives the module one that derives from it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # as long as nobody has imported it, nothing is sharded
    if fsdp is None:
        return type(module)
    return next(cls for cls in type(module).__mro__ if not issubclass(cls, fsdp.FSDPModule))


def key(part: Mapping[str, str]) -> str:
    """Return the key that looks up exactly this part, whatever else is installed."""
    return part["key"] if is_by_hand(part) else f"{part['distribution']}:{part['key']}"


def require(parts: Iterable[Mapping[str, str]], what: str) -> None:
    """Check that the distributions of `parts` are installed; parts registered by hand are left to the look-up.

    Raises:
        CheckpointError: one is missing; the message has the command that installs it.
    """
    missing = sorted({f"{part['distribution']}=={part['version']}" for part in parts if not _installed(part)})
    if missing:
        own = {paper.distribution for paper in known_papers()}
        folders = [f"./plugins/{name}" for requirement in missing if (name := requirement.partition("==")[0]) in own]
        checkout = f", or those of Axon in a checkout of it: pip install {' '.join(folders)}" if folders else ""
        raise CheckpointError(f"{what} needs parts that are not installed: pip install {' '.join(missing)}{checkout}")


def _installed(part: Mapping[str, str]) -> bool:
    """Whether a distribution is here; an empty metadata folder left by an interrupted installation is not one."""
    copies = metadata.distributions(name=part["distribution"])
    return is_by_hand(part) or any(copy.read_text("METADATA") or copy.read_text("PKG-INFO") for copy in copies)
