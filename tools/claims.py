"""Copy a release's verdicts into the packages: `python tools/claims.py docs/claims/0.2.0.json`.

Each plugin's package gets a `claims.json` with its own claims, and with the versions of the distributions that took
part in them. With `--check` nothing is written, and the command fails where a package has another file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from axon_core.errors import AxonError
from axon_core.papers.card import Card, cards
from axon_core.papers.claims_file import CLAIMS, ClaimsFile, read_claims, write_claims
from axon_core.papers.taking_part import distributions_of
from axon_core.registry.packages import package_folders


def of_package(contents: ClaimsFile, card: Card) -> ClaimsFile:
    """Return the part of a file of claims that belongs into the package of `card`; figures stay with the release."""
    own = contents.of_papers([card.entry.key])
    claims = tuple(claim.model_copy(update={"figure": None}) for claim in own.claims)
    part = distributions_of(card.entry.distribution)
    environments = tuple(
        one.model_copy(update={"packages": {name: v for name, v in one.packages.items() if name in part}})
        for one in own.environments
    )
    date = max((claim.date for claim in own.claims), default=own.date)
    return own.model_copy(update={"environments": environments, "claims": claims, "date": date})


def files(contents: ClaimsFile, root: Path) -> dict[Path, ClaimsFile]:
    """Return the file of each package in `root` that has claims in `contents`."""
    found: dict[Path, ClaimsFile] = {}
    for card in cards():
        if (part := of_package(contents, card)).claims:
            (folder,) = package_folders(card.entry)
            if folder.resolve().is_relative_to(root):
                found[folder / CLAIMS] = part
    return found


def main() -> int:
    """Write the files, or compare them; return 1 if `--check` finds another one or the release cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", type=Path, help="a file of docs/claims")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a package has another file")
    options = parser.parse_args()
    try:
        wanted = files(read_claims(options.release), Path(__file__).resolve().parents[1])
        stale = [file for file, part in wanted.items() if not file.is_file() or read_claims(file) != part]
        if options.check:
            for file in stale:
                print(f"{file} is out of date: python tools/claims.py {options.release}", file=sys.stderr)
            return 1 if stale else 0
        for file in stale:
            write_claims(file, wanted[file])
    except AxonError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{len(stale)} of {len(wanted)} packages have a new {CLAIMS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
