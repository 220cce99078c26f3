"""`axon reproduce`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from axon_core.checkpoint.atomic import remove_leftovers, writing
from axon_core.checkpoint.locks import lock_folder
from axon_core.cli.output import echo, json_option, print_json, print_table
from axon_core.papers.card import Paper, cards, find_card
from axon_core.papers.claims import ClaimResult, check_claim, save_claims


@click.command("reproduce")
@click.argument("name", metavar="PAPER", required=False)
@click.option("--all", "everything", is_flag=True, help="Check the claims of every installed paper.")
@click.option("--full", is_flag=True, help="Also check the claims that need a run of the paper's own size.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for claims.json and figures.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, name: str | None, everything: bool, full: bool, out: Path | None, as_json: bool
) -> None:
    """Check the claims of PAPER, print each measured value beside the paper's, and exit with 1 if a claim fails."""
    if (name is None) is not everything:
        raise click.UsageError("give either one paper or --all")
    found = cards() if name is None else (find_card(name),)
    out = out or Path("runs") / f"reproduce-{name or 'all'}".replace(":", "-")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
        ctx.with_resource(lock_folder(out))
        remove_leftovers(out)
    damaged = [c for c in found if c.paper is None]
    results: list[ClaimResult] = []
    try:
        for paper in (c.paper for c in found if c.paper):
            for result in _checked(paper, out, full):
                results.append(result)
    finally:  # keeps what was measured before an interruption
        path = save_claims(results, out)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        columns = ["claim", "where", "paper", "measured", "scale", "verdict", "seconds"]
        print_table(columns, map(_row, results))
        counts = {
            v: sum(r.verdict == v for r in results) for v in ("reproduced", "direction holds", "failed", "not run")
        }
        echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no claims")
        echo(f"Written to {path}")
    for one in damaged:
        echo(f"Error: {one.error}", err=True)
    ctx.exit(1 if damaged or any(result.verdict == "failed" for result in results) else 0)


def _checked(paper: Paper, out: Path, full: bool) -> Iterator[ClaimResult]:
    for claim in paper.claim:
        echo(f"{paper.id}: {claim.id} … ", err=True, nl=False)
        yield (result := check_claim(paper, claim, out=out, full=full))
        echo(f"{result.verdict} ({result.seconds:.1f} s)", err=True)


def _row(result: ClaimResult) -> tuple[str, ...]:
    return (
        f"{result.paper}/{result.claim}",
        result.where,
        result.reported,
        result.measured,
        result.scale,
        result.verdict,
        f"{result.seconds:.1f}",
    )
