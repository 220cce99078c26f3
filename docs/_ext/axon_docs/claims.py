"""The claims of a paper as measured for each release, from the files of `docs/claims`: table, history and badge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from axon_core.escaping import in_markdown
from axon_core.papers.card import Card, Claim, Paper
from axon_core.papers.claims_file import ClaimsFile, MeasuredClaim, read_claims
from axon_docs.badge import GREEN, GREY, RED, YELLOW, badge

_RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?")


def releases(folder: Path) -> dict[str, ClaimsFile]:
    """Return the files of a folder by release, the latest last; a file of another name is none.

    Raises:
        DataError: one of them is not a file of claims.
    """
    files = {file.stem: file for file in folder.glob("*.json") if _RELEASE.fullmatch(file.stem)}
    return {name: _read(files[name], files[name].stat().st_mtime_ns) for name in sorted(files, key=_order)}


@cache
def _read(file: Path, written: int) -> ClaimsFile:
    return read_claims(file)


def _order(release: str) -> tuple[tuple[int, ...], bool, str]:
    """Return what sorts releases: 0.9.0 before 0.10.0, and 0.10.0rc1 before 0.10.0."""
    numbers, _, rest = re.fullmatch(r"([\d.]+)(([a-z].*)?)", release).groups()
    return tuple(int(number) for number in numbers.split(".")), not rest, rest or ""


def section(card: Card, found: Mapping[str, ClaimsFile]) -> list[str]:
    """Return the section of a paper's page about its claims: what it states, what was measured, and when."""
    paper = card.paper
    if not paper.claim:
        return []
    lines = ["## What the paper claims", ""]
    latest = next(reversed(found.values()), None)
    results = of_paper(paper, latest)
    if latest and any(results.values()):
        lines += [f"![claims {summary(results)[0]}]({card.entry.distribution}-claims.svg)", ""]
        lines += [_measured_with(card, latest, [r for r in results.values() if r]), ""]
    else:
        lines += [f"`axon reproduce {paper.id}` checks these; none has been measured for a release.", ""]
    return [*lines, *table(paper, results), "", *_history(paper, found)]


def of_paper(paper: Paper, contents: ClaimsFile | None) -> dict[str, MeasuredClaim | None]:
    """Return the result of each claim of a paper's card, by its id; None if it is not in the file."""
    return {claim.id: contents.find(paper.id, claim.id) if contents else None for claim in paper.claim}


def table(paper: Paper, results: Mapping[str, MeasuredClaim | None]) -> list[str]:
    """Return the table of a card's claims with the paper's values and those measured."""
    titles = ["claim", "where", "the paper reports", "measured", "verdict", "scale and tolerance"]
    head = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*head, *(_row(claim, results[claim.id]) for claim in paper.claim)]


def summary(results: Mapping[str, MeasuredClaim | None]) -> tuple[str, str]:
    """Return what a badge says about a paper's claims, and its colour.

    Those of scaled-down runs are counted apart, because such a run shows a direction and never the paper's number.
    """
    counts = Counter(result.verdict if result else "not run" for result in results.values())
    said = f"{counts['reproduced']}/{len(results)} reproduced"
    if counts["direction holds"]:
        said += f", {counts['direction holds']} direction"
    if counts["failed"]:
        said += f", {counts['failed']} failed"
    measured = any(result and result.verdict != "not run" for result in results.values())
    return said, RED if counts["failed"] else GREY if not measured else YELLOW if counts["not run"] else GREEN


def badges(cards: Sequence[Card], found: Mapping[str, ClaimsFile]) -> dict[str, str]:
    """Return the badge of each paper that has claims, by the name of its file."""
    latest = next(reversed(found.values()), None)
    shown = [(card, summary(of_paper(card.paper, latest))) for card in cards if card.paper.claim]
    return {f"{card.entry.distribution}-claims.svg": badge("claims", *said) for card, said in shown}


def page(cards: Sequence[Card], found: Mapping[str, ClaimsFile]) -> str:
    """Return the page of all claims of the latest release, by paper."""
    latest = next(reversed(found.values()), None)
    lines = ["# Claims", "", "What each paper claims, and what `axon reproduce` measured; failures included."]
    lines += ["[How claims are checked](../concepts/claims.md) explains the verdicts.", ""]
    if latest:
        counts = Counter(claim.verdict for claim in latest.claims)
        listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        lines += [f"Release {next(reversed(found))}, {len(latest.claims)} claims: {listed}.", ""]
    for card in cards:
        results = of_paper(card.paper, latest)
        if results:
            name = card.entry.distribution
            lines += [f"## [{in_markdown(card.paper.title)}]({name}.md)", ""]
            lines += [f"![claims {summary(results)[0]}]({name}-claims.svg)", "", *table(card.paper, results), ""]
    return "\n".join(lines)


def _row(claim: Claim, result: MeasuredClaim | None) -> str:
    tolerance = "" if claim.tolerance is None else f"; {_shown(claim.tolerance)}"
    verdict, measured = (f"*{result.verdict}*", result.measured) if result else ("not measured", "")
    if result and not result.states(claim):
        verdict += " (of an earlier statement)"
    texts = (claim.text, claim.where, claim.paper, measured)
    return f"| {' | '.join(map(in_markdown, texts))} | {verdict} | {in_markdown(claim.scale + tolerance)} |"


def _shown(tolerance: float | str) -> str:
    return tolerance if isinstance(tolerance, str) else f"{tolerance:g}"


def _measured_with(card: Card, contents: ClaimsFile, results: Sequence[MeasuredClaim]) -> str:
    """Return the sentence that says when, with which versions and on what the claims were measured."""
    days = sorted({f"{result.date:%Y-%m-%d}" for result in results})
    used = list(dict.fromkeys(result.environment for result in results))
    machines: list[str] = []
    for one in (contents.environments[number] for number in used):
        plugin = f"{card.entry.distribution} {one.packages.get(card.entry.distribution, 'of an unknown version')}"
        machine = f"Python {one.python} on {one.processor}, {one.cores} cores"
        machines.append(f"{plugin}, torch {one.torch}, {machine}")
    when = days[0] if days[:1] == days[-1:] else f"{days[0]} to {days[-1]}"
    return f"Measured by `axon reproduce {card.paper.id}` on {when} with {in_markdown('; and '.join(machines))}."


def _history(paper: Paper, found: Mapping[str, ClaimsFile]) -> list[str]:
    """Return the verdicts of all releases, if there are several."""
    if len(found) < 2:
        return []
    lines = ["### History", "", f"| claim | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for claim in dict.fromkeys([*(c.id for c in paper.claim), *_former(paper, found)]):
        verdicts = [result.verdict if (result := one.find(paper.id, claim)) else "–" for one in found.values()]
        lines.append(f"| {claim} | {' | '.join(verdicts)} |")
    return [*lines, ""]


def _former(paper: Paper, found: Mapping[str, ClaimsFile]) -> list[str]:
    """Return the claims of earlier releases, some of which the card may have no longer."""
    return [claim.claim for one in found.values() for claim in one.claims if claim.paper == paper.id]
