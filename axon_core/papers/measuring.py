"""Measures the claims of papers into a file, and keeps what the file has from the same machine and versions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from axon_core.papers.card import Card, Claim, Paper
from axon_core.papers.claims import ClaimResult, check_claim, unchecked
from axon_core.papers.claims_file import ClaimsFile, MeasuredClaim, write_claims
from axon_core.papers.taking_part import MeasuredWith, current_machine, distributions_of

__all__ = ["Measuring", "ToMeasure", "is_current"]


@dataclass(frozen=True)
class ToMeasure:
    """A claim to be measured, or one that the file has already."""

    card: Card
    """The installed paper."""
    paper: Paper
    """Its card's contents."""
    claim: Claim
    """The claim."""
    kept: MeasuredClaim | None
    """Its result, if that is kept."""


@dataclass
class Measuring:
    """The claims of some papers, measured into a file one after the other; the file is written after each.

    Args:
        file: where the file of claims is.
        contents: what it contains already.
        figures: the folder for figures.
        full: whether claims that need a run of the paper's own size are checked.
        within: the largest budget in seconds of a claim that is checked.
        again: whether claims are measured although the file has them.
    """

    file: Path
    contents: ClaimsFile
    figures: Path
    full: bool = False
    within: float = math.inf
    again: bool = False
    _machines: dict[str, MeasuredWith] = field(default_factory=dict[str, MeasuredWith], init=False)

    def listed(self, cards: Sequence[Card]) -> list[ToMeasure]:
        """Return the claims of these papers, with the results that are kept; damaged cards have none."""
        found = [(card, card.paper) for card in cards if card.paper]
        return [
            ToMeasure(card, paper, claim, self._kept(card, paper, claim))
            for card, paper in found
            for claim in paper.claim
        ]

    def write_rest(self, cards: Sequence[Card]) -> None:
        """Write what needs no check: what is to be looked up; claims that a card has no longer are left out.

        Raises:
            CheckpointError: the file cannot be written.
        """
        for card in cards:
            if paper := card.paper:
                ids = [one.id for one in (*paper.claim, *paper.look_up)]
                self.contents = self.contents.without(paper.id, ids)
                for wanted in paper.look_up:
                    self._add(card, unchecked(paper, wanted))
        write_claims(self.file, self.contents)

    def measure(self, one: ToMeasure) -> ClaimResult:
        """Check a claim that is not kept, write the file, and return the result.

        Raises:
            CheckpointError: the file or the figure cannot be written.
        """
        result = check_claim(one.paper, one.claim, out=self.figures, full=self.full, within=self.within)
        if result.figure:
            place = (self.figures / result.figure).relative_to(self.file.parent).as_posix()
            result = result.model_copy(update={"figure": place})
        self._add(one.card, result)
        write_claims(self.file, self.contents)
        return result

    def results(self, cards: Sequence[Card]) -> Iterator[MeasuredClaim]:
        """Yield the results of these papers, in the order of their cards."""
        for paper in (card.paper for card in cards if card.paper):
            for one in (*paper.claim, *paper.look_up):
                if (result := self.contents.find(paper.id, one.id)) is not None:
                    yield result

    def _kept(self, card: Card, paper: Paper, claim: Claim) -> MeasuredClaim | None:
        earlier = self.contents.find(paper.id, claim.id)
        if earlier is None or earlier.verdict == "not run":  # what was missing then may be there now
            return None
        if claim.budget_s > self.within:  # an older result says more than none
            return earlier
        if self.again:
            return None
        current = is_current(self.contents, earlier, claim, self._machine(card))
        return earlier if current else None

    def _machine(self, card: Card) -> MeasuredWith:
        name = card.entry.distribution
        if name not in self._machines:
            self._machines[name] = current_machine(distributions_of(name))
        return self._machines[name]

    def _add(self, card: Card, result: ClaimResult) -> None:
        self.contents = self.contents.adding(result, card.entry.distribution, self._machine(card))


def is_current(contents: ClaimsFile, measured: MeasuredClaim, claim: Claim, now: MeasuredWith) -> bool:
    """Whether a result in a file is that of the card's claim on the machine and with the versions of `now`."""
    then = contents.measured_with(measured)
    same_machine = then.model_dump(exclude={"packages"}) == now.model_dump(exclude={"packages"})
    same_versions = all(then.packages.get(name) == version for name, version in now.packages.items())
    return same_machine and same_versions and measured.states(claim)
