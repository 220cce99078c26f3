"""What `axon reproduce --diff` prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from axon_core.cli.output import counted, echo, print_json, print_table
from axon_core.papers.claims_diff import ClaimChange, compare_claims, compare_surroundings
from axon_core.papers.claims_file import read_claims

__all__ = ["show_differences"]

_TITLES = {"worse": "Worse", "better": "Better", "changed": "Changed", "new": "New"}


def show_differences(old: Path, new: Path, *, as_json: bool) -> int:
    """Print what differs between two files of claims; return 1 if something became worse, else 0.

    Raises:
        DataError: one of them is not a file of claims.
    """
    before, after = read_claims(old), read_claims(new)
    changes, surroundings = compare_claims(before, after), compare_surroundings(before, after)
    worse = any(change.effect == "worse" for change in changes)
    if as_json:
        print_json(
            {
                "worse": worse,
                "changes": [asdict(change) for change in changes],
                "surroundings": [{"name": name, "old": then, "new": now} for name, then, now in surroundings],
            }
        )
        return int(worse)
    for effect, title in _TITLES.items():
        if rows := [_row(change) for change in changes if change.effect == effect]:
            echo(f"{title}:")
            print_table(["claim", "what", "old", "new"], rows)
            echo()
    if surroundings:
        echo("Measured with:")
        print_table(["name", "old", "new"], surroundings)
        echo()
    counts = ", ".join(f"{sum(c.effect == effect for c in changes)} {effect}" for effect in _TITLES)
    echo(f"{counted(len(before.claims), 'claim')} before, {len(after.claims)} now: {counts}.")
    return int(worse)


def _row(change: ClaimChange) -> tuple[str, ...]:
    return f"{change.paper}/{change.claim}", change.what, change.old, change.new
