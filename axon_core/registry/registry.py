"""Registries: read-only mappings from a key to the class an installed plugin offers under it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from axon_core.errors import (
    AmbiguousKey,
    AxonError,
    ConfigError,
    ContractError,
    UnknownKey,
    UsageError,
)
from axon_core.registry import discovery
from axon_core.registry.contract import breaches
from axon_core.registry.discovery import Discovered, Entry
from axon_core.registry.keys import instances, note_instance

if TYPE_CHECKING:
    from axon_core.config import Config
    from axon_core.registry.spec import Spec

__all__ = ["Entry", "Registry", "refresh", "registries", "registry_of"]

T = TypeVar("T")
Class = TypeVar("Class", bound=type)

_SESSION = "(this session)"


class Registry(Mapping[str, type[T]], Generic[T]):
    """The classes installed plugins offer in one group, by key; a plugin is imported when its value is asked for.

    A key that two distributions claim is listed, and looked up, as `"distribution:key"`, which is valid for every key.
    `in`, iteration, `len`, `==` and `entries` never import a plugin; `values` and `items` import them all. Two
    registries are equal if they are the same object.

    Args:
        group: the entry-point group it serves, without the prefix `axon.v1.`.
        interface: the base class of all its classes, or, to import it on demand, `"package.module:Name"`.
    """

    def __init__(self, group: str, interface: str | type[T]) -> None:
        self.group = group
        self.name = group.replace("_", " ")
        self._interface = interface
        self._loaded: dict[str, type[T]] = {}
        self._local: dict[str, tuple[Entry, type[T]]] = {}  # from `register` and `override`
        self._table: dict[str, tuple[Entry, ...]] = {}
        self._table_of: Discovered | None = None  # the scan that `_table` was made from
        note_instance(self)

    def __getitem__(self, key: str) -> type[T]:
        """Return the class of `key`, importing its plugin the first time.

        Raises:
            UnknownKey: nothing of that name is installed.
            AmbiguousKey: several distributions offer it.
            PluginLoadError: its plugin cannot be imported.
            ContractError: the class does not keep the contract of the interface.
        """
        loaded = self._loaded.get(key)
        return self._load(key) if loaded is None else loaded

    def _load(self, key: str) -> type[T]:
        entry = self.entry(key)
        if local := self._local.get(key):
            found = local[1]
        else:
            found = entry.load()
            self._check(found, entry)
        return self._loaded.setdefault(key, found)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._candidates(key))

    def __iter__(self) -> Iterator[str]:
        for key, found in self._entries().items():
            if len(found) == 1:
                yield key
            else:
                yield from (entry.qualified for entry in found)

    def __len__(self) -> int:
        return sum(map(len, self._entries().values()))

    def __eq__(self, other: object) -> bool:
        return self is other  # a Mapping would compare the classes, and import every plugin for that

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.name} registry: {', '.join(self) or 'empty'}>"

    @property
    def interface(self) -> type[T]:
        """The base class of all classes in this registry."""
        if isinstance(self._interface, str):
            module, _, name = self._interface.partition(":")
            self._interface = cast("type[T]", reduce(getattr, name.split("."), importlib.import_module(module)))
        return self._interface

    def entry(self, key: str) -> Entry:
        """Return what is known of `key` without importing it. Raises `UnknownKey` or `AmbiguousKey`."""
        found = self._candidates(key)
        if len(found) > 1:
            claims = " and ".join(entry.source for entry in found)
            names = " or ".join(repr(entry.qualified) for entry in found)
            raise AmbiguousKey(f"the {self.name} {key!r} is offered by {claims}; choose one: {names}")
        if not found:
            from axon_core.registry.suggest import unknown_key

            raise UnknownKey(unknown_key(key, self.group, self.entries()))
        return found[0]

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, sorted by key."""
        return tuple(entry for found in self._entries().values() for entry in found)

    def config(self, spec: Spec | str | type | Mapping[str, Any], **given: Any) -> Config:
        """Return the validated config `build` would use, without building; parts among `given` are ignored.

        Raises:
            ConfigError: an option breaks a rule, or contradicts a keyword.
            ContractError: the class does not know a keyword.
        """
        return self._prepare(spec, given)[1]

    def build(self, spec: Spec | str | type | Mapping[str, Any], **given: Any) -> T:
        """Build the component that `spec` names: `cls(config, **parts)`.

        Of the keywords, those that are fields of its `Config` complete the options of `spec`; the others are the parts
        its constructor takes.

        Raises:
            ConfigError: an option breaks a rule, or contradicts a keyword; paths are relative to the component.
            ContractError: the class does not know a keyword, or needs a part that is not given.
        """
        cls, config, parts = self._prepare(spec, given)
        try:
            inspect.signature(cls).bind(config, **parts)
        except TypeError as error:
            raise ContractError(f"{self._described(cls)} cannot be built: {error}") from None
        return cast(Any, cls)(config, **parts)

    def schema(self, key: str) -> dict[str, Any]:
        """Return the JSON schema of the options of `key`."""
        return _config_class(self[key]).model_json_schema()

    @overload
    def register(self, key: str) -> Callable[[Class], Class]: ...

    @overload
    def register(self, key: str, cls: type[T]) -> None: ...

    def register(self, key: str, cls: type[T] | None = None) -> Callable[[Class], Class] | None:
        """Offer `cls` under `key` for the rest of the process, as in a notebook; a plugin uses entry points instead.

        Without `cls` it is a decorator: `@ATTENTIONS.register("MINE")` above the class. Running a notebook's cell
        again replaces the class that the cell registered before.

        Raises:
            UsageError: the key holds a colon or is empty, or anything else offers it.
            ContractError: the class does not keep the interface's contract.
        """
        if cls is None:

            def decorate(decorated: Class) -> Class:
                self._offer(key, cast("type[T]", decorated))
                return decorated

            return decorate
        self._offer(key, cls)
        return None

    def _offer(self, key: str, cls: type[T]) -> None:
        entry = self._local_entry(key, cls)
        for other in self._candidates(key):
            if other != entry:
                raise UsageError(
                    f"the {self.name} {key!r} is already offered by {other.source} ({other.target}); choose another "
                    "key, or replace it temporarily with the context manager `override`"
                )
        self._put(key, (entry, cls))

    @contextmanager
    def override(self, **classes: type[T]) -> Generator[None]:
        """Within the block, offer `classes` under their keys, in place of what is installed.

        Raises `UsageError` if a key holds a colon, and `ContractError` if a class does not keep the contract of the
        interface.
        """
        local = {key: (self._local_entry(key, cls), cls) for key, cls in classes.items()}
        before = {key: self._local.get(key) for key in classes}
        try:
            for key, new in local.items():
                self._put(key, new)
            yield
        finally:
            for key, old in before.items():
                self._put(key, old)

    def _put(self, key: str, local: tuple[Entry, type[T]] | None) -> None:
        if local is None:
            self._local.pop(key, None)
        else:
            self._local[key] = local
        self._forget()

    def _forget(self) -> None:
        self._table_of = None
        self._loaded.clear()

    def _entries(self) -> dict[str, tuple[Entry, ...]]:
        """Candidates by key, sorted by key; rebuilt after a new scan or a `register`."""
        found = discovery.discover()
        if self._table_of is not found:
            table: dict[str, tuple[Entry, ...]] = {}
            for entry in found.entries(self.group):
                table[entry.key] = (*table.get(entry.key, ()), entry)
            for key, (entry, _) in self._local.items():
                table[key] = (entry,)
            self._table, self._table_of = dict(sorted(table.items())), found
        return self._table

    def _candidates(self, key: str) -> tuple[Entry, ...]:
        distribution, qualified, bare = key.rpartition(":")
        found = self._entries().get(bare, ())
        if qualified:
            name = discovery.normalised_name(distribution)
            return tuple(entry for entry in found if entry.distribution == name)
        return found

    def _local_entry(self, key: str, cls: type[T]) -> Entry:
        if ":" in key or not key:
            raise UsageError(f"a key must be a name without ':', which qualified keys use; got {key!r}")
        entry = Entry(key, _SESSION, "", f"{cls.__module__}:{cls.__qualname__}", self.group)
        self._check(cls, entry)
        return entry

    def _prepare(
        self, spec: Spec | str | type | Mapping[str, Any], given: Mapping[str, Any]
    ) -> tuple[type[T], Config, dict[str, Any]]:
        """Return the class, its validated config, and the parts among `given`."""
        discovery.discover()  # before pydantic is imported, as a damaged distribution may need to be kept from it
        from axon_core.config import validate
        from axon_core.registry.spec import Spec

        spec = Spec.of(spec)
        cls = self[spec.type]
        schema, options = _config_class(cls), spec.options
        takes = inspect.signature(cls).parameters.values()
        parts = {name: value for name, value in given.items() if name not in schema.model_fields}
        if strange := sorted(parts.keys() - {p.name for p in takes if p.kind is not p.VAR_POSITIONAL}):
            if all(p.kind is not p.VAR_KEYWORD for p in takes):
                raise ContractError(
                    f"{self._described(cls)} got {', '.join(strange)}, which is neither a field of its Config "
                    f"({', '.join(schema.model_fields)}) nor a parameter of its constructor"
                )
        told = {name: value for name, value in given.items() if name not in parts}
        if problems := [
            ((name,), f"is set to {told[name]!r} by the user of this {self.name}, got {options[name]!r}; leave it out")
            for name in told.keys() & options.keys()
            if told[name] != options[name]
        ]:
            raise ConfigError(problems)
        return cls, validate(schema, {**options, **told}), parts

    def _described(self, cls: type[T]) -> str:
        return f"the {self.name} {cls.__module__}.{cls.__qualname__}"

    def _check(self, cls: Any, entry: Entry) -> None:
        """Raise `ContractError`, naming everything missing, unless `cls` keeps the contract of the interface."""
        if missing := breaches(cls, self.interface):
            raise ContractError(
                f"the {self.name} {entry.key!r} of {entry.source} ({entry.target}) does not keep the contract of its "
                f"interface: {'; '.join(missing)}"
            )


def _config_class(cls: type) -> type[Config]:
    return cast("type[Config]", cast(Any, cls).Config)  # that it has one was checked when it was loaded


OWN = {
    **dict.fromkeys(("attention", "rotary_embedding", "norm", "model"), "axon_core.registries"),
    "chat_template": "axon_core.text.chat_template",
    "recipe_section": "axon_core.training.recipe_sections",
    "quantization": "axon_core.nn.quantization",
    "optimizer": "axon_core.training.optim",
    "weight_decay": "axon_core.training.decay",
    "trainer": "axon_core.training.trainers",
}
"""Where the core's own registries are; like a plugin's, each is imported when it is asked for."""


def registries() -> tuple[Registry[Any], ...]:
    """Return the core's registries, and those of plugins as far as they are imported, sorted by group."""
    return tuple(cast("list[Registry[Any]]", instances()))


def registry_of(group: str) -> Registry[Any]:
    """Return the registry that serves `group`, importing the plugin that defines it if need be.

    Raises:
        PluginLoadError: the plugin that defines it cannot be imported.
        ContractError: what the plugin names as the registry is not one.
        AxonError: no installed distribution serves the group.
    """
    for entry in discovery.discover().entries("registry"):
        if entry.key == group:
            found = entry.load()
            if isinstance(found, Registry) and found.group == group:
                return cast(Registry[Any], found)
            raise ContractError(
                f"{entry.target} of {entry.source} must be the Registry of group {group!r}, got {found!r}"
            )
    if group in OWN:
        importlib.import_module(OWN[group])
    for registry in registries():
        if registry.group == group:
            return registry
    raise AxonError(
        f"no registry serves the group {group!r}; a plugin can define one in the group {discovery.API}.registry"
    )


def refresh() -> None:
    """Scan for plugins again, as after installing one while this process runs; loaded classes are looked up again."""
    importlib.invalidate_caches()
    discovery.forget()
    for registry in registries():
        registry._forget()  # pyright: ignore[reportPrivateUsage]  of the same module
