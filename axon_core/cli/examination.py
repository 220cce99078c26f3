"""A thorough check of the installed plugins: what is broken, and how to repair it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from axon_core.errors import AxonError, ContractError, PluginLoadError
from axon_core.papers.card import read_card
from axon_core.registry.discovery import API, Discovered, Entry, Problem, load_problem, normalised_name, scan
from axon_core.registry.registry import refresh, registry_of

__all__ = ["examine_environment"]


def examine_environment() -> tuple[Discovered, list[Problem]]:
    """Scan the environment again, import every plugin, and return the plugins found and every problem.

    This runs the plugins' code.
    """
    refresh()
    found = scan(thorough=True)
    problems = [*found.problems, *_disagreements(found), *_claimed_twice(found)]
    for group in sorted(found.served):
        for entry in found.entries(group):
            problems += _unusable(entry)
            for check in _checks(entry) if group == "paper" else ():
                problems += _unusable(check)
    return found, sorted(problems, key=lambda p: p.distribution)


def _claimed_twice(found: Discovered) -> Iterator[Problem]:
    for group, entries in found.groups.items():
        claims: dict[str, list[Entry]] = {}
        for entry in entries:
            claims.setdefault(entry.key, []).append(entry)
        for key, rivals in claims.items():
            if rivals[1:]:
                names = " or ".join(repr(entry.qualified) for entry in rivals)
                what = f"the {group.replace('_', ' ')} {key!r} is offered by {' and '.join(e.source for e in rivals)}"
                remedy = f"Write {names} where you use it, or uninstall all but one"
                yield Problem(", ".join(e.distribution for e in rivals), what, remedy)


def _unusable(entry: Entry) -> Iterator[Problem]:
    """Load the object that `entry` names, and yield a problem if that fails."""
    try:
        _load(entry)
    except PluginLoadError as error:
        if error.__cause__ is not None:
            yield load_problem(entry, error.__cause__)
        else:
            what, _, remedy = str(error).rpartition(". ")  # a missing package or card
            yield Problem(entry.distribution, what, remedy)
    except AxonError as error:
        remedy = f"Upgrade {entry.distribution}, or ask its authors to run: axon check {entry.distribution}"
        yield Problem(entry.distribution, str(error), remedy)
    except Exception as error:
        yield load_problem(entry, error)


def _checks(entry: Entry) -> list[Entry]:
    """Return the checks of a paper's claims as entries; none if the card is damaged, which is reported separately."""
    try:
        claims = read_card(entry).claim
    except AxonError:
        return []
    return [Entry(claim.id, entry.distribution, entry.version, claim.check, "claim") for claim in claims]


def _load(entry: Entry) -> None:
    from axon_core.cli.app import COMMANDS, load_command

    if entry.group == "paper":
        read_card(entry)
    elif entry.group == "command":
        if entry.key in COMMANDS:
            raise ContractError(f"the command {entry.key!r} can never run: axon itself has a command of that name")
        load_command(entry)
    elif entry.group in ("hooks", "claim"):
        entry.load()
    elif entry.group == "registry":
        registry_of(entry.key)
    else:
        registry_of(entry.group)[entry.qualified]


def _disagreements(found: Discovered) -> Iterator[Problem]:
    """Compare with the `entrypoints` package, which reads the files independently: a difference means stale files."""
    import configparser

    import entrypoints

    named = {p.distribution for p in found.problems}
    seen: dict[tuple[str, str, str], str] = {}
    try:
        for folder in dict.fromkeys(sys.path):
            for parsed, distribution in entrypoints.iter_files_distros([folder], repeated_distro="all"):
                name = normalised_name(cast(Any, distribution).name)
                for section in parsed.sections():
                    if section.startswith(f"{API}."):
                        for key, _ in parsed.items(section, raw=True):
                            seen[name, section.removeprefix(f"{API}."), key] = folder
    except (configparser.Error, UnicodeError) as error:
        # It stops at the first file it cannot read. If the scan has not reported that file, this does.
        file = Path(str(getattr(error, "source", "")))
        name = normalised_name(file.parent.name.partition("-")[0])
        if file.name and name not in named:
            what = f"the package entrypoints cannot read {file}: {' '.join(str(error).split())}"
            remedy = f"Reinstall it (pip install --force-reinstall {name}) and run axon doctor again"
            yield Problem(name, what, remedy)
        return
    entries = [*found.disabled, *(entry for group in found.groups.values() for entry in group)]
    used = {(e.distribution, e.group, e.key) for e in entries}
    for name, group, key in sorted(spot for spot in seen.keys() ^ used if spot[0] not in named):
        finders = ["importlib.metadata", "the package entrypoints"]
        if folder := seen.get((name, group, key)):
            finders.reverse()
        what = f"{finders[0]} finds [{API}.{group}] {key}{f' in {folder}' if folder else ''}, but {finders[1]} does not"
        yield Problem(name, what, f"Uninstall {name} until pip finds no further copy, then install it once")
