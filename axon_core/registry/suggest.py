"""What to tell a user whose key no installed plugin offers."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from axon_core.registry.discovery import Entry, discover


@dataclass(frozen=True, slots=True)
class KnownPaper:
    """A paper whose plugin exists, installed or not."""

    distribution: str
    """The distribution to install."""
    arxiv: str
    """The paper's arXiv id."""
    title: str
    """The paper's title."""
    offers: Mapping[str, tuple[str, ...]]
    """Keys it offers, by group."""


@cache
def known_papers() -> tuple[KnownPaper, ...]:
    """Return the papers listed in `known_papers.toml`, which serves messages and `axon search` only."""
    text = Path(__file__).with_name("known_papers.toml").read_text("utf-8")
    return tuple(
        KnownPaper(p["distribution"], p["arxiv"], p["title"], {g: tuple(keys) for g, keys in p["offers"].items()})
        for p in tomllib.loads(text)["paper"]
    )


def install_line(distribution: str, extra: str = "") -> str:
    """Return how to install one of Axon's distributions, with an extra: from the index, or from a checkout of Axon.

    >>> install_line("axon-core", "plot")
    "pip install 'axon-core[plot]', or in a checkout of Axon: pip install './[plot]'"
    """
    folder = "./" if distribution == "axon-core" else f"./plugins/{distribution}"
    index, checkout = (f"'{place}[{extra}]'" if extra else place for place in (distribution, folder))
    return f"pip install {index}, or in a checkout of Axon: pip install {checkout}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of `known` that `name` may be a misspelling of, ignoring case."""
    folded = {k.lower(): k for k in known}
    return [folded[k] for k in difflib.get_close_matches(name.lower(), folded, n=3)]


def unknown_name(kind: str, name: str, known: Mapping[str, str], *hints: str) -> str:
    """Say that no `kind` called `name` is installed, then `hints`, similar names, and what is known: name -> source."""
    sentences = [f"no {kind} {name!r} is installed", *hints]
    if near := nearest(name.rpartition(":")[2], known):
        sentences.append(f"Near it: {', '.join(map(repr, near))}")
    listed = ", ".join(f"{key} ({source})" for key, source in known.items()) or "none"
    return ". ".join([*sentences, f"Installed {kind}{'es' if kind.endswith('s') else 's'}: {listed}"])


def unknown_key(key: str, group: str, entries: Iterable[Entry]) -> str:
    """Say that nothing installed offers `key` in `group`, and what would provide it."""
    bare = key.rpartition(":")[2]
    hints = [hint] if (hint := left_out(group, bare)) else list[str]()
    if not hints:
        brings = (p for p in known_papers() if bare in p.offers.get(group, ()))
        hints.extend(f"{p.title} (arXiv {p.arxiv}) offers it: {install_line(p.distribution)}" for p in brings)
    return unknown_name(group.replace("_", " "), key, {e.key: e.source for e in entries}, *hints)


def left_out(group: str, key: str) -> str | None:
    """Say which installed plugins offer `key` in `group` and are left out, why, and what to do; None if none does."""
    found = discover()
    offers = sorted({e.distribution: e for e in found.disabled if (e.group, e.key) == (group, key)}.items())
    if asked := [f"{name} offers it, but {found.refused[name]}" for name, _ in offers if name in found.refused]:
        return "; ".join(asked)
    if offers:
        names = ", ".join(name for name, _ in offers)
        return f"{names} offers it, but AXON_PLUGINS or AXON_DISABLE_PLUGINS disables that plugin"
    return None
