"""What `axon info` says of a paper: its card, and the verdicts that its package was released with."""

from __future__ import annotations

from typing import Any

from axon_core.cli.output import counted, echo, print_table
from axon_core.errors import AxonError
from axon_core.papers.card import Card, cards
from axon_core.papers.released import ReleasedVerdict, read_released, released_verdicts

__all__ = ["paper_records", "print_paper"]


def paper_records(key: str) -> list[dict[str, Any]]:
    """Return what is known of each installed paper whose id or plugin is `key`; none of their code is run.

    Raises:
        ConfigError: its card breaks a rule.
        PluginLoadError: it has no card.
    """
    return [_record(card) for card in cards() if key in (card.entry.key, card.entry.qualified, card.entry.distribution)]


def print_paper(record: dict[str, Any]) -> None:
    """Print the record of a paper."""
    authors = ", ".join(record["authors"])
    echo(f"paper {record['key']}: {record['distribution']} {record['version']}")
    echo(f"{record['title']}\n{authors}, {record['year']}: arXiv {record['arxiv']}\n\n{record['summary']}\n")
    if record["error"]:
        echo(f"Its verdicts cannot be shown: {record['error']}\n")
    claims = record["claims"]
    if claims:
        print_table(["claim", "where", "paper", "scale", "verdict", "measured", "when"], map(_row, claims))
        echo()
    if wanted := record["look_up"]:
        echo(f"{counted(len(wanted), 'claim')} to be looked up: {', '.join(wanted)}\n")
    if any(claim["stale"] for claim in claims):
        echo("Stale: measured with another version of the plugin, or of another statement.")
    echo(f"Check them here:  axon reproduce {record['key']}\n")


def _record(card: Card) -> dict[str, Any]:
    if card.paper is None:
        raise card.error or AxonError(f"the card of {card.entry.source} cannot be read")
    error = None
    try:
        released = read_released(card)
    except AxonError as problem:
        released, error = None, str(problem)
    about = card.paper.model_dump(mode="json", include={"title", "authors", "year", "arxiv", "summary"})
    return {
        "kind": "paper",
        "key": card.entry.key,
        "distribution": card.entry.distribution,
        "version": card.entry.version,
        **about,
        "claims": [_claim(one) for one in released_verdicts(card, released)],
        "look_up": [wanted.id for wanted in card.paper.look_up],
        "error": error,
    }


def _claim(one: ReleasedVerdict) -> dict[str, Any]:
    stated = one.claim.model_dump(mode="json", exclude={"check", "budget_s"})
    shown = {"measured", "values", "seeds", "seconds", "date"}
    result = one.measured.model_dump(mode="json", include=shown) if one.measured else {}
    return {
        **stated,
        "verdict": one.measured.verdict if one.measured else "not measured",
        **result,
        "measured_version": one.version,
        "stale": one.stale,
    }


def _row(claim: dict[str, Any]) -> tuple[str, ...]:
    when = f"{claim['date'][:10]}, {claim['measured_version'] or 'unknown version'}" if "date" in claim else ""
    verdict = f"{claim['verdict']} (stale)" if claim["stale"] else claim["verdict"]
    return claim["id"], claim["where"], claim["paper"], claim["scale"], verdict, claim.get("measured", ""), when
