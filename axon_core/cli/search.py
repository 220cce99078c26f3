"""`axon search`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.papers.card import cards, recipes
from axon_core.registry.discovery import discover
from axon_core.registry.suggest import install_line, known_papers


@dataclass(frozen=True, slots=True)
class _Hit:
    kind: str
    name: str
    about: str
    get: str


@click.command("search")
@click.argument("words", nargs=-1)
@json_option
def command(words: tuple[str, ...], as_json: bool) -> None:
    """Search components, recipes and papers, installed or not, for all of WORDS; without words, show everything."""
    hits = [hit for hit in _everything() if all(w.lower() in " ".join(asdict(hit).values()).lower() for w in words)]
    if as_json:
        print_json([asdict(hit) for hit in hits])
    elif hits:
        print_table(["kind", "name", "about", "get it"], [tuple(asdict(hit).values()) for hit in hits])
    else:
        echo(f"Nothing matches all of: {' '.join(words)}. `axon search` without words shows everything.")


def _everything() -> Iterator[_Hit]:
    found = discover()
    installed: set[str] = set()
    for card in cards():
        installed.add(card.entry.distribution)
        paper = card.paper
        about = (
            f"{paper.title} ({', '.join(paper.authors)}; arXiv {paper.arxiv}). {paper.summary}" if paper else "damaged"
        )
        yield _Hit("paper", card.entry.key, about, f"installed: {card.entry.source}")
    for group, entries in found.groups.items():
        if group not in ("paper", "hooks", "registry"):
            yield from (_Hit(group, e.key, e.target, f"installed: {e.source}") for e in entries)
    for recipe in recipes():
        yield _Hit("recipe", recipe.name, recipe.summary, f"installed: {recipe.distribution} {recipe.version}")
    for paper in known_papers():
        if paper.distribution not in installed:
            offers = "; ".join(f"{group} {', '.join(keys)}" for group, keys in paper.offers.items())
            name = paper.distribution.removeprefix("axon-")
            about = f"{paper.title} (arXiv {paper.arxiv}). Offers {offers}"
            yield _Hit("paper", name, about, install_line(paper.distribution))
