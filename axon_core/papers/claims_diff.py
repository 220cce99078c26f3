"""What differs between two files of claims: what became worse or better, and what was measured differently."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from axon_core.papers.claims import Verdict
from axon_core.papers.claims_file import ClaimsFile, MeasuredClaim

__all__ = ["ClaimChange", "compare_claims", "compare_surroundings"]

Effect = Literal["worse", "better", "changed", "new"]

_RANK: Mapping[Verdict, int] = {"failed": 0, "not run": 0, "direction holds": 1, "reproduced": 2}


@dataclass(frozen=True)
class ClaimChange:
    """One difference between two files of claims."""

    effect: Effect
    """Whether something became worse or better, was measured or stated differently, or is new."""
    paper: str
    """Id of the paper."""
    claim: str
    """Id of the claim."""
    what: str
    """What differs: `verdict`, `claim` (it vanished, or is new), `tolerance`, `measured` or `statement`."""
    old: str
    """What the old file says."""
    new: str
    """What the new file says."""


def compare_claims(old: ClaimsFile, new: ClaimsFile) -> list[ClaimChange]:
    """Return what differs, what became worse first.

    Worse are a verdict that is lower than before (reproduced, direction holds, failed), one that is no longer
    measured, a new failure of what was not run, a claim that vanished, and a larger tolerance. A measurement changed
    if the means over the seeds are further apart than both standard deviations together.
    """
    before, after = ({(c.paper, c.claim): c for c in file.claims} for file in (old, new))
    found: list[ClaimChange] = []
    for key in dict.fromkeys((*before, *after)):
        then, now = before.get(key), after.get(key)
        if then and now:
            found += _changes(then, now)
        elif then:
            found.append(ClaimChange("worse", *key, "claim", then.verdict, "vanished"))
        elif now:
            found.append(ClaimChange("new", *key, "claim", "", now.verdict))
    order = ("worse", "better", "changed", "new")
    return sorted(found, key=lambda change: order.index(change.effect))


def compare_surroundings(old: ClaimsFile, new: ClaimsFile) -> list[tuple[str, str, str]]:
    """Return what the claims were measured with that differs: its name, and its value in the old and the new file."""
    before, after = _surroundings(old), _surroundings(new)
    names = dict.fromkeys((*before, *after))
    pairs = [(name, before.get(name, "none"), after.get(name, "none")) for name in names]
    return [(name, then, now) for name, then, now in pairs if then != now]


def _changes(old: MeasuredClaim, new: MeasuredClaim) -> Iterator[ClaimChange]:
    key = (old.paper, old.claim)
    if old.verdict != new.verdict:
        yield ClaimChange(
            _effect(old.verdict, new.verdict), *key, "verdict", old.verdict, f"{new.verdict}: {new.measured}"
        )
    elif _moved(old, new):
        yield ClaimChange("changed", *key, "measured", old.measured, new.measured)
    if old.tolerance != new.tolerance:
        larger = isinstance(old.tolerance, float) and isinstance(new.tolerance, float) and new.tolerance > old.tolerance
        tolerances = (str(one.tolerance if one.tolerance is not None else "none") for one in (old, new))
        yield ClaimChange("worse" if larger else "changed", *key, "tolerance", *tolerances)
    for name in ("where", "text", "reported", "scale"):
        if (then := getattr(old, name)) != (now := getattr(new, name)):
            yield ClaimChange("changed", *key, "statement", then, now)


def _effect(old: Verdict, new: Verdict) -> Effect:
    if "not run" in (old, new):  # what is no longer measured is lost, even a failure
        return "better" if old == "not run" and new != "failed" else "worse"
    return "better" if _RANK[new] > _RANK[old] else "worse"


def _moved(old: MeasuredClaim, new: MeasuredClaim) -> bool:
    """Whether the means are further apart than both standard deviations; one value has a deviation of 0."""
    then, now = ([value for value in one.values if value is not None] for one in (old, new))
    if len(then) < len(old.values) or len(now) < len(new.values):  # some are not finite
        return old.values != new.values
    if not then or not now:
        return bool(then) != bool(now)
    spread = sum(statistics.stdev(values) if values[1:] else 0.0 for values in (then, now))
    return abs(statistics.fmean(then) - statistics.fmean(now)) > spread


def _surroundings(file: ClaimsFile) -> dict[str, str]:
    """Return the machine's facts and the distributions' versions of a file; if there are several, all of them."""
    found: dict[str, dict[str, None]] = {}
    for one in file.environments:
        facts = one.model_dump(exclude={"packages", "torch"}) | one.packages
        for name, value in facts.items():
            found.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}
