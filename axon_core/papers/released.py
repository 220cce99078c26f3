"""The verdicts that a package was released with: the file `claims.json` beside its card, read without its code."""

from __future__ import annotations

from dataclasses import dataclass

from axon_core.papers.card import Card, Claim
from axon_core.papers.claims_file import CLAIMS, ClaimsFile, MeasuredClaim, read_claims
from axon_core.registry.packages import package_folders

__all__ = ["ReleasedVerdict", "read_released", "released_verdicts"]


@dataclass(frozen=True)
class ReleasedVerdict:
    """A claim of an installed card, and what its package was released with."""

    claim: Claim
    """The claim of the card."""
    measured: MeasuredClaim | None
    """Its result, or None if the package has none."""
    version: str | None
    """The version of the plugin that was measured."""
    stale: bool
    """Whether another version of the plugin is installed, or the card now states something else."""


def read_released(card: Card) -> ClaimsFile | None:
    """Return the file of claims inside the package of `card`, or None if it has none.

    Raises:
        DataError: it is not a file of claims.
        PluginLoadError: there is no such package.
    """
    for folder in package_folders(card.entry):
        if (file := folder / CLAIMS).is_file():
            return read_claims(file)
    return None


def released_verdicts(card: Card, contents: ClaimsFile | None) -> list[ReleasedVerdict]:
    """Return each claim of a card with its result in `contents`; claims of other papers there are left out."""
    found: list[ReleasedVerdict] = []
    for claim in card.paper.claim if card.paper else ():
        measured = contents.find(card.entry.key, claim.id) if contents else None
        if contents is None or measured is None:
            found.append(ReleasedVerdict(claim, None, None, stale=False))
            continue
        version = contents.measured_with(measured).packages.get(card.entry.distribution)
        stale = version != card.entry.version or not measured.states(claim)
        found.append(ReleasedVerdict(claim, measured, version, stale))
    return found
