"""Which key a class is registered under."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakSet

from axon_core.errors import ConfigError, ContractError, PluginLoadError
from axon_core.registry.discovery import Entry

__all__ = ["Keyed", "instances", "key_of", "note_instance"]


class Keyed(Protocol):
    """What `key_of` needs of a registry."""

    group: str

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, key: str, /) -> type[Any]: ...

    def entry(self, key: str) -> Entry:
        """Return what is known of `key` without importing it."""
        ...


_instances: WeakSet[Keyed] = WeakSet()


def note_instance(registry: Keyed) -> None:
    """Let `instances` return this registry for as long as it exists."""
    _instances.add(registry)


def instances() -> list[Keyed]:
    """Return the registries of all modules imported so far, sorted by group."""
    return sorted(_instances, key=lambda registry: registry.group)


def key_of(cls: type) -> str:
    """Return the key under which a registry offers `cls`, qualified if the bare key is ambiguous.

    Raises `ConfigError` if no registry does.
    """
    root = cls.__module__.partition(".")[0]
    for registry in instances():
        for key in registry:
            entry = registry.entry(key)
            # Only entries of the class's own package can be it, and that package is imported already.
            if entry.target.partition(":")[0].partition(".")[0] == root:
                try:
                    if registry[key] is cls:
                        return key
                except (PluginLoadError, ContractError):
                    continue
    name = cls.__name__
    rule = f"{cls.__module__}.{cls.__qualname__} is in no registry"
    remedy = f"register it first, for example an attention with ATTENTIONS.register({name!r}, {name})"
    raise ConfigError([((), f"{rule}; {remedy}")])
