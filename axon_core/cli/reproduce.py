"""`axon reproduce`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from axon_core.checkpoint.atomic import claimed_file, remove_leftovers, writing
from axon_core.checkpoint.locks import lock_folder
from axon_core.cli.output import counted, echo, json_option, print_json, print_table
from axon_core.errors import UsageError
from axon_core.papers.card import Card, cards, find_card
from axon_core.papers.claims import ClaimResult, Verdict
from axon_core.papers.claims_file import CLAIMS, ClaimsFile, read_claims
from axon_core.papers.measuring import Measuring, ToMeasure


@click.command("reproduce")
@click.argument("name", metavar="PAPER", required=False)
@click.option("--all", "everything", is_flag=True, help="Check the claims of every installed paper.")
@click.option("--full", is_flag=True, help="Also check the claims that need a run of the paper's own size.")
@click.option(
    "--within",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Leave out claims whose card allows them more seconds; they are not run.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder for claims.json and figures, or a file FILE.json that other calls continue.",
)
@click.option("--again", is_flag=True, help="With a file: measure again what it has already.")
@click.option(
    "--diff",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="OLD NEW",
    help="Run nothing: compare two files of claims, and exit with 1 if something became worse.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    name: str | None,
    everything: bool,
    full: bool,
    within: float | None,
    out: Path | None,
    again: bool,
    diff: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Check the claims of PAPER, print each measured value beside the paper's, and exit with 1 if a claim fails.

    With --out FILE.json, claims that the file has from this machine and these versions are kept, so an interrupted
    command continues. Claims of other papers in the file stay. The figures are in a folder beside it.
    """
    if diff:
        if name or everything or full or within or out or again:
            raise click.UsageError("--diff compares two files and runs nothing; give it alone, or with --json")
        from axon_core.cli.claims_diff import show_differences

        ctx.exit(show_differences(*diff, as_json=as_json))
    if (name is None) is not everything:
        raise click.UsageError("give either one paper or --all")
    out = out or Path("runs") / f"reproduce-{name or 'all'}".replace(":", "-")
    found = cards() if name is None else (find_card(name),)
    measuring = _opened(ctx, out, again)
    measuring.full, measuring.within = full, within or math.inf
    _measure(measuring, found)
    results = list(measuring.results(found))
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        _print(results, measuring.file)
    damaged = [card for card in found if card.paper is None]
    for one in damaged:
        echo(f"Error: {one.error}", err=True)
    ctx.exit(1 if damaged or any(result.verdict == "failed" for result in results) else 0)


def _opened(ctx: click.Context, out: Path, again: bool) -> Measuring:
    """Lock the folder or file of the results until the command ends, and read what the file has already.

    Raises:
        UsageError: `out` is a file of another kind, or `again` is given for a folder, whose claims are measured anyway.
        DataError: the file is not a file of claims.
        CheckpointError: nothing can be written there.
    """
    if out.suffix == ".json" and not out.is_dir():
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
        ctx.with_resource(claimed_file(out))
        contents = read_claims(out) if out.exists() else ClaimsFile.empty()
        return Measuring(out, contents, out.with_suffix(""), again=again)
    if out.is_file():
        raise UsageError(f"--out must be a folder, or a file whose name ends in .json, got the file {out}")
    if again:
        raise UsageError(f"--again needs --out FILE.json; a folder such as {out} is measured again in any case")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        ctx.with_resource(lock_folder(out))
        remove_leftovers(out)
    return Measuring(out / CLAIMS, ClaimsFile.empty(), out, again=True)


def _measure(measuring: Measuring, found: Sequence[Card]) -> None:
    """Measure what is not kept, with a line for each claim on the standard error."""
    listed = measuring.listed(found)
    waiting = [one for one in listed if one.kept is None]
    if kept := len(listed) - len(waiting):
        echo(f"{measuring.file} has {counted(kept, 'claim')} from this machine and these versions.", err=True)
    measuring.write_rest(found)
    for number, one in enumerate(waiting, 1):
        echo(f"[{number}/{len(waiting)}] {one.paper.id}: {one.claim.id} … ", err=True, nl=False)
        result = measuring.measure(one)
        echo(f"{result.verdict} ({result.seconds:.1f} s{_left(waiting[number:])})", err=True)


def _left(waiting: Sequence[ToMeasure]) -> str:
    """Return how long the claims that wait may take by their cards, which is far longer than most need."""
    minutes = sum(one.claim.budget_s for one in waiting if one.claim.scale != "full") / 60
    return f"; at most {minutes:.0f} min left" if minutes >= 1 else ""


def _print(results: Sequence[ClaimResult], file: Path) -> None:
    print_table(["claim", "where", "paper", "measured", "scale", "verdict", "seconds"], map(_row, results))
    counts = Counter(result.verdict for result in results)
    verdicts = (verdict for verdict in get_args(Verdict) if counts[verdict])
    echo(", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts) or "no claims")
    echo(f"Written to {file}")


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
