"""The file `claims.json`: every claim of some papers, as measured, when and with what.

A file grows by one claim at a time and is replaced atomically each time, so that an interruption loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AwareDatetime, Field, NonNegativeInt, model_validator

from axon_core.checkpoint.atomic import write_text
from axon_core.config import Config, validate
from axon_core.documents import parse_json
from axon_core.errors import ConfigError, DataError
from axon_core.json_text import to_json
from axon_core.papers.card import Claim
from axon_core.papers.claims import ClaimResult
from axon_core.papers.taking_part import MeasuredWith

__all__ = ["CLAIMS", "FORMAT", "LARGEST_FILE", "ClaimsFile", "MeasuredClaim", "read_claims", "write_claims"]

CLAIMS = "claims.json"
"""The file's usual name: in a folder of `axon reproduce`, and inside a released package."""
FORMAT = 1
"""The number of the format that this version writes; it reads no later one."""
LARGEST_FILE = 16 << 20
"""The most bytes in a file that is read; one claim takes about a thousand."""


class MeasuredClaim(ClaimResult):
    """A claim's result in a file: also from which plugin, when, and with what it was measured."""

    distribution: str
    """The plugin whose card has the claim."""
    date: AwareDatetime
    """When it was measured."""
    environment: NonNegativeInt
    """Which of the file's environments it was measured in, from 0."""

    def states(self, claim: Claim) -> bool:
        """Whether it is a result of this claim as the card states it now."""
        stated = (self.where, self.text, self.reported, self.scale, self.tolerance)
        return stated == (claim.where, claim.text, claim.paper, claim.scale, claim.tolerance)


class ClaimsFile(Config):
    """What a file of claims contains."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    """Number of the format."""
    kind: Literal["axon claims"] = "axon claims"
    """What the file is."""
    date: AwareDatetime
    """When it was last written."""
    environments: tuple[MeasuredWith, ...] = ()
    """The machines and distributions that its claims were measured with."""
    claims: tuple[MeasuredClaim, ...] = ()
    """The claims, sorted by paper."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [(claim.paper, claim.claim) for claim in self.claims]
        if twice := sorted({f"{paper}/{claim}" for paper, claim in names if names.count((paper, claim)) > 1}):
            raise ValueError(f"each claim may be there once, but {', '.join(twice)} is there more than once")
        if beyond := [c.claim for c in self.claims if c.environment >= len(self.environments)]:
            raise ValueError(f"the environment of the claim {beyond[0]!r} is not among the {len(self.environments)}")
        return self

    @classmethod
    def empty(cls) -> Self:
        """Return a file without claims."""
        return cls(date=_now())

    def find(self, paper: str, claim: str) -> MeasuredClaim | None:
        """Return a claim of a paper, or None if it is not in the file."""
        return next((c for c in self.claims if (c.paper, c.claim) == (paper, claim)), None)

    def measured_with(self, claim: MeasuredClaim) -> MeasuredWith:
        """Return the machine and the distributions with which one of its claims was measured."""
        return self.environments[claim.environment]

    def of_papers(self, papers: Iterable[str]) -> Self:
        """Return the file with the claims of these papers alone."""
        names = set(papers)
        return self._with([c for c in self.claims if c.paper in names], self.environments)

    def without(self, paper: str, kept: Iterable[str]) -> Self:
        """Return the file without those claims of `paper` whose ids are not among the `kept`."""
        names = set(kept)
        return self._with([c for c in self.claims if c.paper != paper or c.claim in names], self.environments)

    def adding(self, result: ClaimResult, distribution: str, used: MeasuredWith) -> Self:
        """Return the file with a new result, which replaces an earlier one of the same claim."""
        environments, number = _joined(self.environments, used)
        facts = {"distribution": distribution, "date": _now(), "environment": number}
        new = MeasuredClaim.model_validate({**result.model_dump(), **facts})
        same = [(c.paper, c.claim) == (new.paper, new.claim) for c in self.claims]
        claims = [new if replaced else c for c, replaced in zip(self.claims, same, strict=True)]
        return self._with(claims if any(same) else [*claims, new], environments)

    def _with(self, claims: Iterable[MeasuredClaim], environments: tuple[MeasuredWith, ...]) -> Self:
        """Return the file with these claims, sorted by paper, and of the environments those that are used."""
        claims = sorted(claims, key=lambda c: c.paper)
        used = sorted({c.environment for c in claims})
        numbered = [c.model_copy(update={"environment": used.index(c.environment)}) for c in claims]
        return type(self)(
            date=_now(), environments=tuple(environments[number] for number in used), claims=tuple(numbered)
        )


def read_claims(file: Path) -> ClaimsFile:
    """Read and check a file of claims.

    Raises:
        DataError: it is missing, unreadable, larger than `LARGEST_FILE`, of a later format or not a file of claims.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; name a file of `axon reproduce`") from error
    if len(content) > LARGEST_FILE:
        raise DataError(
            f"{file} is no file of claims: such a file has at most {LARGEST_FILE:,} bytes, and this one has more; "
            "name a file that `axon reproduce` wrote"
        )
    try:
        tables: Any = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file} is no file of claims: it is not JSON ({error}); {_REMEDY}") from None
    return _checked(file, tables)


def write_claims(file: Path, contents: ClaimsFile) -> None:
    """Write a file of claims atomically. Raises `CheckpointError` if it cannot be written."""
    write_text(file, to_json(contents.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


_REMEDY = "name a file that `axon reproduce` wrote, or write a new one with `axon reproduce --all --out FILE.json`"


def _checked(file: Path, tables: Any) -> ClaimsFile:
    about = cast(dict[str, Any], tables) if isinstance(tables, dict) else {}
    if about.get("kind") != "axon claims":
        raise DataError(f'{file} is no file of claims: it has no entry "kind": "axon claims"; {_REMEDY}')
    number = about.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise DataError(
            f"{file} has format {number} of a later Axon, and this one reads formats up to {FORMAT}; upgrade axon-core"
        )
    try:
        return validate(ClaimsFile, about)
    except ConfigError as error:
        raise DataError(f"{file} is no valid file of claims: {error}; {_REMEDY}") from None


def _joined(known: tuple[MeasuredWith, ...], used: MeasuredWith) -> tuple[tuple[MeasuredWith, ...], int]:
    """Return the environments with `used` among them, and its number: one that differs in no version takes it in."""
    for number, one in enumerate(known):
        machine = {"packages"}
        if one.model_dump(exclude=machine) != used.model_dump(exclude=machine):
            continue
        if all(one.packages.get(name, version) == version for name, version in used.packages.items()):
            merged = one.model_copy(update={"packages": dict(sorted({**one.packages, **used.packages}.items()))})
            return (*known[:number], merged, *known[number + 1 :]), number
    return (*known, used), len(known)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
