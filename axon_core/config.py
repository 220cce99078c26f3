"""Configuration: the pydantic base of all configs, tables that choose by their `type`, and errors with a place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, TypeGuard, TypeVar, Union, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from axon_core.errors import ConfigError, RegistryError
from axon_core.escaping import shortened

__all__ = [
    "LARGEST",
    "Chosen",
    "Config",
    "Count",
    "at",
    "current_names",
    "declared_part",
    "former_names",
    "merged",
    "validate",
]

C = TypeVar("C", bound=BaseModel)

Count = Annotated[int, Field(gt=0, le=65_536)]
"""A number of things made or done one by one: layers, samples, repetitions within a step.

A larger one is a typo that would keep the machine busy forever. Numbers of steps, examples and tokens
have other types, since they are sizes of data.
"""


LARGEST = 2.0**128 - 2.0**104
"""The largest number in float32, which tensors hold; torch raises where it is to take a larger one."""


class Config(BaseModel):
    """Base of every configuration: immutable, keyword only.

    Unknown fields, numbers that are not finite in float32 and integers beyond 64 bits are errors. Every field
    carries a description; a field that stands for a constant of a paper cites the section.
    A table without a `type` changes the part that its field declares by default: fields it does not name stay.

    Attributes:
        renamed: former names of fields, each with its name now. Tables that use them, such as those of old recipes and
            run folders, are read as if they used the names of today; subclasses inherit them.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        try:
            return current_names(cast("Mapping[str, Any]", values), (cls,), _declared)
        except ConfigError as error:  # so that pydantic says where this table stands
            raise ValueError(str(error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _with_declared_part(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name is None or not _is_partial(value):
            return value
        return merged(declared_part(cls, info.field_name, info.data) or {}, value)

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        for name in type(self).model_fields:
            for at, value in _numbers(name, getattr(self, name)):
                if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                    raise ValueError(f"{at} must fit 64 bits, got {shortened(str(value), 24)}")
                if isinstance(value, float) and abs(value) > LARGEST:
                    raise ValueError(f"{at} must be within ±{LARGEST:.2g}, the range of float32, got {value:g}")
        return self


def _numbers(at: str, value: Any) -> Generator[tuple[str, int | float]]:
    """Yield the place and value of a number, or of each in a collection; a config in it has checked its own."""
    if isinstance(value, int | float):
        yield at, value
    elif isinstance(value, Mapping):
        for key, inside in cast(Mapping[Any, Any], value).items():
            yield from _numbers(f"{at}.{key}", inside)
    elif isinstance(value, list | tuple | set | frozenset):
        for i, inside in enumerate(cast("Collection[Any]", value)):
            yield from _numbers(f"{at}.{i}", inside)


@cache
def former_names(configs: tuple[type[BaseModel], ...]) -> dict[str, str]:
    """Return the former names of the fields of any of `configs`, each with its name now."""
    renamed = {
        old: new
        for config in configs
        for kind in reversed(config.__mro__)
        for old, new in vars(kind).get("renamed", {}).items()
    }
    return {old: new for old, new in renamed.items() if not any(old in config.model_fields for config in configs)}


def current_names(
    table: Mapping[str, Any],
    configs: tuple[type[BaseModel], ...],
    configs_of: Callable[[Any, FieldInfo | None], tuple[type[BaseModel], ...]],
) -> dict[str, Any]:
    """Return `table` with the names that its fields have now, also in the tables within it.

    Args:
        table: a table of a recipe, of a run folder or of a saved model.
        configs: the classes that may validate it.
        configs_of: returns the classes that may validate a value, given the field it stands in, if that is known.

    Raises:
        ConfigError: a field is given under its former name and its name now.
    """
    names, result = former_names(configs), dict[str, Any]()
    for key, value in table.items():
        name = names.get(key, key)
        if name in result or (name != key and name in table):
            old = next(old for old in table if names.get(old) == name)
            raise ConfigError([((name,), f"given twice: {old!r} is its former name; remove one of the two")])
        if isinstance(value, Mapping):
            field = next((config.model_fields[name] for config in configs if name in config.model_fields), None)
            inner = configs_of(value, field)
            if inner or not configs:  # a field of a known config whose table is of no config stays as it is
                with at(name):
                    value = current_names(cast("Mapping[str, Any]", value), inner, configs_of)
        result[name] = value
    return result


def _declared(_: Any, field: FieldInfo | None) -> tuple[type[BaseModel], ...]:
    """Return the configs that a field's annotation names."""
    kinds = _alternatives(field.annotation) if field else []
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config))


class Chosen(BaseModel):
    """A table whose `type` says what it is for, with the options of that: `{"type": "mynorm", "eps": 1e-6}`.

    A plain name (`"mynorm"`) is accepted as a short form.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    type: str
    """The component's key in its registry, or `"distribution:key"`."""

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @classmethod
    def of(cls, value: Chosen | str | type | Mapping[str, Any]) -> Self:
        """Return `value`, in any of its forms, as an object of this class. Raises `ConfigError` where it is none."""
        return value if isinstance(value, cls) else validate(cls, value)

    @property
    def options(self) -> dict[str, Any]:
        """The component's own options: everything but `type`."""
        return dict(self.model_extra or {})


def declared_part(config: type[BaseModel], name: str, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of the part, or of the config, that a field has by default; None if it has neither.

    `known` are the values of the fields before it, which the default may depend on. A default that might equally be of
    another config, with no `type` to tell which, is not returned.
    """
    field = config.model_fields[name]
    kinds = _alternatives(field.annotation)
    try:
        default = field.get_default(call_default_factory=True, validated_data=dict(known))
        choices = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Chosen)]
        if choices and not isinstance(default, BaseModel):
            default = choices[0].of(default)
    except Exception:  # it depends on what is missing or wrong: validation will report it
        return None
    if not isinstance(default, BaseModel):
        return None
    table, key = default.model_dump(mode="json", exclude_unset=True), getattr(default, "type", None)
    if key is None:
        return table if kinds == [type(default)] else None
    return {"type": key, **table}


def merged(part: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return `part` with the fields of `table`; nested tables without a `type` also change only what they name."""
    return {
        **part,
        **{
            name: merged(old, new) if _is_partial(new) and isinstance(old := part.get(name), Mapping) else new
            for name, new in table.items()
        },
    }


def _is_partial(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether this is a table that does not say which part it belongs to."""
    return isinstance(value, Mapping) and "type" not in value


def validate(config: type[C], values: Any) -> C:
    """Validate `values` against `config`; raises `ConfigError` with each rule, the value and where it stands."""
    try:
        return config.model_validate(values)
    except ValidationError as error:
        # A default that needs the value of a wrong field follows from an error already listed.
        errors = [e for e in error.errors(include_url=False) if e["type"] != "default_factory_not_called"]
        raise ConfigError([*_problems(errors, config)]) from None


def _problems(errors: Sequence[ErrorDetails], config: type[BaseModel]) -> Generator[tuple[tuple[str, ...], str]]:
    """Yield the place of each broken rule, and the rule; a table's unknown fields together, beside those it has."""
    unknown: dict[tuple[str, ...], list[str]] = {}
    for error in errors:
        path = tuple(map(str, error["loc"]))
        if error["type"] != "extra_forbidden":
            yield path, _message(error)
        elif close := difflib.get_close_matches(path[-1], _fields(config, path[:-1]), n=1):
            yield path, f"unknown field {path[-1]!r} (did you mean {close[0]!r}?)"
        else:
            unknown.setdefault(path[:-1], []).append(path[-1])
    for table, names in unknown.items():
        known = f"(known: {', '.join(_fields(config, table)) or 'none'})"
        if len(names) == 1:
            yield (*table, names[0]), f"unknown field {names[0]!r} {known}"
        else:
            yield table, f"unknown fields {', '.join(map(repr, names))} {known}"


def _fields(config: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the fields of the table at `path` of a config, as far as its annotations say."""
    if not path:
        return list(config.model_fields)
    field = config.model_fields.get(path[0])
    inner = [kind for kind in _kinds(field.annotation if field else None) if issubclass(kind, BaseModel)]
    rest = path[1:]
    while rest and rest[0].isdecimal():  # the number of an item
        rest = rest[1:]
    return list(dict.fromkeys(name for kind in inner for name in _fields(kind, rest)))


def _alternatives(annotation: Any) -> list[Any]:
    """Return what a field may hold besides None: the members of a union, including those of nested unions."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return [] if annotation is type(None) else [annotation]
    return [kind for member in get_args(annotation) for kind in _alternatives(member)]


def _kinds(annotation: Any) -> Generator[type]:
    """Yield the classes in an annotation, including those within unions and collections."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


@contextmanager
def at(*path: str, source: str | None = None) -> Generator[None]:
    """Prepend `path` to every `ConfigError`, and to every failed look-up of a key, raised in the block."""
    try:
        yield
    except RegistryError as error:
        error.place, error.source = (*path, *error.place), source or error.source
        raise
    except ConfigError as error:
        raise error.inside(*path, source=source) from error.__cause__


def _message(error: ErrorDetails) -> str:
    """One readable line for one pydantic error: the rule, then the value."""
    match error["type"]:
        case "missing":
            return "this field is required"
        case "value_error":
            return f"{error['msg'].removeprefix('Value error, ')}"
        case "model_type":
            of_part = error.get("ctx", {}).get("class_name") in {
                kind.__name__ for kind in (Chosen, *Chosen.__subclasses__())
            }
            kind = "a name or a table with a `type`" if of_part else "a table"
            return f"must be {kind}, got {shortened(repr(error['input']), 200)}"
        case _:
            rule = error["msg"].partition(" should ")[2] or f"be {error['msg']}"
            return f"must {rule}, got {shortened(repr(error['input']), 200)}"
