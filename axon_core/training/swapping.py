"""Swapping a part of a recipe by its name: every option that the new part has too is kept, and nothing else changes.

Nothing here names a part. A key is looked up in every registry, those of plugins included, and among the optimisers and
tokenizers; the fields of the `Config` found there say what a part takes.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast, get_args

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from axon_core.config import Config, current_names, declared_part, former_names, merged, validate
from axon_core.errors import AxonError, ConfigError
from axon_core.registry.discovery import discover
from axon_core.registry.registry import registries, registry_of

__all__ = ["Swap", "Table", "alternatives", "current_path", "default_part", "report", "schemas_of", "swap"]

Table = dict[str, Any]
Schema = type[BaseModel]

_log = logging.getLogger("axon")
_NO_PARTS = frozenset(("paper", "command", "hooks", "registry"))


class Swap(Config):
    """A part of a recipe that was replaced by name, and what became of its options; `run.json` records it."""

    at: str
    """Where it stands: `model.attention`."""
    old: str
    """The key of the part that was replaced."""
    new: str
    """The key of the part in its place."""
    kept: dict[str, Any] = Field(default_factory=dict)
    """The options that the new part has too."""
    dropped: dict[str, Any] = Field(default_factory=dict)
    """The options that it cannot take, as they were."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why it cannot take each of them."""

    def __str__(self) -> str:
        """One line for the user; options that are dropped for one reason stand together."""
        by_reason: dict[str, list[str]] = {}
        for name, value in self.dropped.items():
            by_reason.setdefault(self.reasons[name], []).append(f"{name} = {value!r}")
        dropped = ", ".join(f"{', '.join(options)} ({reason})" for reason, options in by_reason.items())
        done = [f"keeps {', '.join(self.kept)}"] * bool(self.kept) + [f"drops {dropped}"] * bool(dropped)
        return f"{self.at or 'type'}: {self.new} instead of {self.old} {' and '.join(done)}".rstrip()


def swap(
    at: Sequence[str], old: Mapping[str, Any], new: str, given: frozenset[str] = frozenset()
) -> tuple[Table, Swap]:
    """Return the table of the part `new` with the options of `old` that it has too, and what was done.

    Args:
        at: where the part stands in the recipe.
        old: the table of the part that is replaced, with its `type`.
        new: the key of the new part.
        given: options that are about to be set to other values, so that the old ones are not missed.
    """
    was = str(old.get("type", ""))
    configs = _configs(new, was)
    options = current_names({name: value for name, value in old.items() if name != "type"}, configs, schemas_of)
    given = frozenset(former_names(configs).get(name, name) for name in given)
    reasons = _refused(configs, new, options)
    kept = {name: value for name, value in options.items() if name not in reasons}
    missed = [name for name in reasons if name not in given]
    done = Swap(
        at=".".join(at),
        old=was,
        new=new,
        kept={name: value for name, value in kept.items() if name not in given},
        dropped={name: options[name] for name in missed},
        reasons={name: reasons[name] for name in missed},
    )
    return {"type": new, **kept}, done


def report(swaps: Sequence[Swap]) -> None:
    """Tell the user what each swap kept and dropped, in one line each."""
    for done in swaps:
        if done.kept or done.dropped:
            _log.warning("%s", done)


def default_part(tables: Mapping[str, Any], path: Sequence[str]) -> Table | None:
    """Return the table of the part that stands at `path` of a recipe if nothing is written there; None if none does.

    The configs of the enclosing parts determine it: a model that names its own norm, a trainer its optimiser.
    """
    part, _ = _found(tables, path)
    return part if part and "type" in part else None


def alternatives(tables: Mapping[str, Any], path: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of all that is registered in the place of the part at `path` of a recipe, that part's own first.

    It is empty if no part stands there. A part that cannot be built there is a key too: only building it can tell.
    """
    node: Any = tables
    for name in path:
        node = cast("Mapping[str, Any]", node).get(name) if isinstance(node, Mapping) else None
    default = str((default_part(tables, path) or {}).get("type", ""))
    written: Any = cast("Mapping[str, Any]", node).get("type", default) if isinstance(node, Mapping) else node
    own = written if isinstance(written, str) else default
    found = list(_offering(own)) if own else []
    beside = [catalogue for catalogue in found if default in catalogue] or found
    keys = [key for catalogue in beside for key in catalogue if key not in (own, own.rpartition(":")[2])]
    return tuple(dict.fromkeys([own, *keys])) if found else ()


def current_path(tables: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    """Return the place of a field in a recipe by the names that fields have now."""
    current: list[str] = []
    for name in path:
        _, schemas = _found(tables, current)
        current.append(former_names(schemas).get(name, name))
    return current


def _found(tables: Mapping[str, Any], path: Sequence[str]) -> tuple[Table | None, tuple[Schema, ...]]:
    """Return what stands at `path` of a recipe by default, and the classes that may validate what is there."""
    node: Any = tables
    part: Table | None = None
    schemas: tuple[Schema, ...] = ()
    for name in path:
        table = cast("Mapping[str, Any]", node) if isinstance(node, Mapping) else {}
        owner = next((schema for schema in schemas if name in schema.model_fields), None)
        part = None if owner is None else declared_part(owner, name, _before(owner, name, table))
        node = table.get(name, part)
        if part is not None and isinstance(node, Mapping) and "type" not in node:
            node = merged(part, cast("Mapping[str, Any]", node))
        schemas = schemas_of(node, None if owner is None else owner.model_fields[name])
    return part, schemas


def _before(config: Schema, name: str, table: Mapping[str, Any]) -> Table:
    """Return the values of the fields before one: those written in a table, else their defaults, if available."""
    known: Table = {}
    for field, info in config.model_fields.items():
        if field == name:
            break
        if field in table:
            known[field] = table[field]
        elif not info.is_required():
            with suppress(Exception):  # a factory may need what is missing here
                known[field] = info.get_default(call_default_factory=True, validated_data=known)
    return known


def schemas_of(node: Any, field: FieldInfo | None = None) -> tuple[Schema, ...]:
    """Return the classes that may validate what stands in a field: those its `type` names, or the field's own."""
    name = cast("Mapping[str, Any]", node).get("type") if isinstance(node, Mapping) else node
    if isinstance(name, str):
        return _configs(name)
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))


def _refused(configs: Sequence[Schema], new: str, options: Table) -> dict[str, str]:
    """Return the options that no config takes, each with the reason; reasons not tied to one option are left out."""
    found = [_reasons(config, new, options) for config in configs]
    found = found or [dict.fromkeys(options, f"{new} is unknown")]
    return {name: found[0][name] for name in options if all(name in reasons for reasons in found)}


def _reasons(config: Schema, new: str, options: Table) -> dict[str, str]:
    strange = {name: f"no option of {new}" for name in options if name not in config.model_fields}
    told: dict[str, str] = {}
    try:
        validate(config, {name: value for name, value in options.items() if name not in strange})
    except ConfigError as error:  # other problems too: what a model passes down is missing here
        told = {path[0]: message.partition(", got ")[0] for path, message in error.problems if path}
    except Exception:  # a plugin's validator that needs what is missing: the build will report it
        told = {}
    return {**strange, **{name: why for name, why in told.items() if name in options}}


def _configs(key: str, beside: str = "") -> tuple[Schema, ...]:
    """Return the configs of what is offered as `key`, only those offered together with `beside`, if there are any."""
    found = list(_offering(key))
    configs: list[Schema] = []
    for catalogue in [catalogue for catalogue in found if beside in catalogue] or found:
        with suppress(AxonError):  # a damaged plugin: the build will report it
            kind: Any = catalogue[key]
            configs.append(getattr(kind, "Config", kind))
    return tuple(configs)


def _offering(key: str) -> Generator[Mapping[str, type]]:
    """Yield every catalogue that offers something as `key`; of plugins' registries only those are imported."""
    from axon_core.text.tokenizer import tokenizer_types

    if key in (types := tokenizer_types()):
        yield types
    imported = {registry.group: registry for registry in registries()}
    yield from (registry for registry in imported.values() if key in registry)
    for group, entries in discover().groups.items():
        if group not in (*imported, *_NO_PARTS) and any(key in (e.key, e.qualified) for e in entries):
            with suppress(AxonError):
                yield registry_of(group)
