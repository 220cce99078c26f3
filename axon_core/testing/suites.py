"""The suites of the kit, one for each interface, and the parts they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from axon_core.errors import AxonError, ContractError, UsageError
from axon_core.registry import discovery
from axon_core.registry.discovery import Entry
from axon_core.registry.registry import registry_of
from axon_core.testing import division, imports, norm, quantization, rotary_embedding, trainer
from axon_core.testing.kit import Broken, Case, Check, PartUnderTest, Suite

__all__ = ["cases", "cases_of", "suites"]


def suites() -> list[Suite]:
    """Return the suite of every interface, and that of a plugin's import."""
    return [*division.SUITES, rotary_embedding.SUITE, norm.SUITE, quantization.SUITE, trainer.SUITE, imports.SUITE]


def cases(distribution: str | None = None) -> Iterator[Case]:
    """Yield every check on every part that `distribution` offers, or any installed distribution if it is None.

    Then the import of each distribution is checked.

    Raises:
        UsageError: the distribution offers nothing.
    """
    known = discovery.discover()
    every = [entry for group in sorted(known.groups) for entry in known.entries(group)]
    if distribution is not None:
        name = discovery.normalised_name(distribution)
        offer = ", ".join(sorted({entry.distribution for entry in every}))
        every = [entry for entry in every if entry.distribution == name]
        if not every:
            raise UsageError(f"no installed distribution {name!r} offers parts; these do: {offer or 'none'}")
    groups = sorted(known.groups.keys() - {"paper", "command", "hooks", "registry"})
    entries = [entry for entry in every if entry.group in groups]
    twice = [(entry.group, entry.key) for group in groups for entry in known.entries(group)]
    for entry in entries:
        key = entry.key if twice.count((entry.group, entry.key)) == 1 else entry.qualified
        yield from _cases_of_entry(entry, f"{entry.group}:{key}")
    for name in sorted({entry.distribution for entry in every}):
        served = [entry for entry in every if entry.distribution == name and entry.group in known.served]
        part = imports.imported_plugin(name, served)
        yield from (Case(part, check) for check in imports.SUITE.checks)


def cases_of(cls: type[Any], options: Mapping[str, Any] | None = None, name: str | None = None) -> Iterator[Case]:
    """Yield every check on `cls`, built with `options` or, without options, with each of its `examples`.

    Raises:
        ContractError: the class does not implement one of the interfaces.
    """
    suite = next((suite for suite in suites() if issubclass(cls, suite.interface)), None)
    if suite is None:
        raise ContractError(f"{cls.__qualname__} must implement an interface of the kit, and implements none")
    variants: Sequence[Mapping[str, Any]] = [options] if options else cls.examples
    if not variants:
        yield Case(PartUnderTest(name or cls.__qualname__, cls), _NO_EXAMPLE)
    for variant in variants:
        shown = ",".join(f"{key}={value}" for key, value in variant.items() if not isinstance(value, Mapping))
        title = f"{name or cls.__qualname__}[{shown}]" if shown else name or cls.__qualname__
        yield from (Case(PartUnderTest(title, cls, variant), check) for check in suite.checks)


def _cases_of_entry(entry: Entry, name: str) -> Iterator[Case]:
    """Yield the checks on one entry; for an entry that fails to load or is in a plugin's registry, only `loads`."""
    try:
        cls = registry_of(entry.group)[entry.qualified]
    except AxonError as error:
        fails = replace(_LOADS, run=_always(Broken(f"loading {entry.target} of {entry.source}", str(error))))
        yield Case(PartUnderTest(name, type(None)), fails)
        return
    yield Case(PartUnderTest(name, cls), _LOADS)
    if any(issubclass(cls, suite.interface) for suite in suites()):
        yield from cases_of(cls, name=name)


def _always(broken: Broken) -> Callable[[PartUnderTest], None]:
    def run(part: PartUnderTest) -> None:
        raise broken

    return run


_LOADS = Check(
    "loads",
    "The entry point names a class that keeps its registry's contract.",
    "a failing import, or a misspelt entry point",
    lambda part: None,
)
_NO_EXAMPLE = Check(
    "examples",
    "The class has at least one small example for the checks.",
    "a missing class attribute `examples`",
    _always(Broken("the class attribute `examples`", "it is empty")),
)
