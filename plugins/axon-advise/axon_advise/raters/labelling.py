"""The stage `rated`: comparisons are divided among raters of known reliability, who answer some of them wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, PositiveFloat, field_validator

from axon_core import CheckpointError, Key, config, expanded, to_json
from axon_core.checkpoint import new_folder
from axon_core.text import Comparison, Ranking, read_records
from axon_instructgpt import Stage

__all__ = ["KnownRater", "RatedComparisons", "labelled"]


class KnownRater(config.Config):
    """A rater whose reliability is known, as the recipe says it."""

    reliability: float = Field(ge=0, le=1)
    """C: the probability of keeping the label; otherwise it is turned round. 1 is always right, 0 an adversary."""
    share: PositiveFloat = 1.0
    """How many of the labels are this rater's, relative to the shares of the others."""


class _Answer(NamedTuple):
    rater: str
    right: bool


def labelled(n: int, raters: Mapping[str, KnownRater], key: Key) -> list[_Answer]:
    """Return who labels each of n comparisons, and whether rightly.

    Each rater has a number of labels in proportion to the share, in random places; each label is right with the
    rater's probability C, independently.

    Args:
        n: how many comparisons there are.
        raters: the raters by name.
        key: what the random numbers derive from.
    """
    total, bounds = sum(rater.share for rater in raters.values()), list[int]()
    for rater in raters.values():
        bounds.append(round(n * rater.share / total) + (bounds[-1] if bounds else 0))
    bounds[-1] = n
    generator = key.generator()
    places, draws = (
        torch.randperm(n, generator=generator).tolist(),
        torch.rand(n, generator=generator, dtype=torch.float32).tolist(),
    )
    found = [_Answer("", True)] * n
    for (name, rater), first, end in zip(raters.items(), [0, *bounds], bounds, strict=False):
        for place in places[first:end]:
            found[place] = _Answer(name, draws[place] < rater.reliability)
    return found


class RatedComparisons(Stage):
    """Divides what the stage `comparisons` wrote among raters of known reliability.

    Writes `rankings.jsonl` and `comparisons.jsonl`, each line with its `rater`, a wrong answer turned round;
    `clean/` with the same files, of the raters alone who are right more often than not; and `facts.json`, with the true
    reliabilities and the numbers of labels.
    """

    class Config(Stage.Config):
        """Whose labels, and by whom."""

        comparisons: str
        """The folder of a stage `comparisons`."""
        raters: Annotated[dict[str, KnownRater], Field(min_length=1)]
        """The raters by name, each with a `reliability` and a `share`."""
        seed: int = 0
        """What all random numbers derive from."""

        @field_validator("raters")
        @classmethod
        def _named(cls, raters: dict[str, KnownRater]) -> dict[str, KnownRater]:
            for name in raters:
                if not 0 < len(name) <= 200:
                    raise ValueError(f"a rater's name must have 1 to 200 characters, got {len(name)}")
            if all(rater.reliability <= 0.5 for rater in raters.values()):
                raise ValueError(
                    "at least one rater must be right more often than not: where all answer against the truth, the "
                    "labels fit the opposite reward, with everybody right, just as well"
                )
            return raters

    config: Config

    def run(self, out: Path) -> None:
        """Label and write. Raises `DataError` if the comparisons cannot be read."""
        folder, c = expanded(self.config.comparisons, CheckpointError), self.config
        rankings = read_records(folder / "rankings.jsonl", Ranking)
        pairs = read_records(folder / "comparisons.jsonl", Comparison)
        answers = labelled(len(rankings), c.raters, Key((c.seed, "rated")))
        honest = {name for name, rater in c.raters.items() if rater.reliability > 0.5}
        facts = {
            "raters": {
                name: {"reliability": rater.reliability, "labels": sum(one.rater == name for one in answers)}
                for name, rater in c.raters.items()
            },
            "right": sum(one.right for one in answers) / len(answers),
        }
        with new_folder(out) as target:
            (target / "clean").mkdir()
            for name, records in (("rankings", rankings), ("comparisons", pairs)):
                rows = [_turned(record, one) for record, one in zip(records, answers, strict=True)]
                _write(target / f"{name}.jsonl", rows)
                _write(target / "clean" / f"{name}.jsonl", [row for row in rows if row["rater"] in honest])
            (target / "facts.json").write_text(to_json(facts, indent=1, ensure_ascii=False), encoding="utf-8")


def _turned(record: Ranking | Comparison, answer: _Answer) -> dict[str, Any]:
    """Return a record as a row with its rater; the other way round if the answer is wrong."""
    row = {**record.model_dump(mode="json", exclude_defaults=True), "rater": answer.rater}
    if answer.right:
        return row
    if isinstance(record, Ranking):
        return {**row, "ranking": [*reversed(record.ranking)]}
    other = {"chosen": "rejected", "rejected": "chosen"}
    cut_off = {"unfinished": [other[name] for name in record.unfinished]} if record.unfinished else {}
    return {**row, "chosen": record.rejected, "rejected": record.chosen, **cut_off}


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(to_json(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
