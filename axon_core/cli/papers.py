"""`axon papers`."""

from __future__ import annotations

from typing import Any

import click

from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.papers.card import Card, cards


@click.command("papers")
@json_option
def command(as_json: bool) -> None:
    """List the installed papers; for a damaged card, show what is wrong with it."""
    found = cards()
    if as_json:
        print_json([_record(card) for card in found])
    elif found:
        print_table(["paper", "title", "year", "arXiv", "claims", "plugin"], map(_row, found))
    else:
        echo("No paper is installed; `axon search` lists papers to install.")


def _row(card: Card) -> tuple[str, ...]:
    if (paper := card.paper) is None:
        return card.entry.key, f"damaged: {card.error}", "", "", "", card.entry.source
    return card.entry.key, paper.title, str(paper.year), paper.arxiv, str(len(paper.claim)), card.entry.source


def _record(card: Card) -> dict[str, Any]:
    about = card.paper.model_dump() if card.paper else {"id": card.entry.key, "error": str(card.error)}
    return {**about, "distribution": card.entry.distribution, "version": card.entry.version}
