"""What is believed of raters: as a file beside a model, in words, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from axon_core import CheckpointError, in_markdown, parse_json, printable, to_json
from axon_core.checkpoint import write_text
from axon_core.registry import new_figure

__all__ = ["RATERS_FILE", "Rating", "draw_ratings", "ratings_table", "read_ratings", "write_ratings"]

RATERS_FILE = "raters.json"
"""The file in a model's folder that says what was learnt of raters."""
_FEW = 10
_CARELESS = 0.7


@dataclass(frozen=True)
class Rating:
    """What is believed of one rater."""

    name: str
    """The rater."""
    reliability: float
    """C, the probability of a right answer: the posterior mean."""
    error: float
    """The posterior standard deviation of C; 0 where C is not estimated."""
    labels: int
    """Comparisons by the rater, those held out among them."""
    held_out: int
    """Held-out comparisons by the rater, from which C is estimated."""
    trusted: bool = False
    """Whether the rater is known to be right."""

    @property
    def verdict(self) -> str:
        """What that means, in words; two standard errors decide whether a rater answers against the others.

        >>> Rating("Ada", 0.21, 0.03, 400, 40).verdict
        'answers against the others'
        """
        if self.trusted:
            return "trusted"
        if self.held_out < _FEW:
            return "too few held-out labels to tell"
        if self.reliability + 2 * self.error < 0.5:
            return "answers against the others"
        return "careless" if self.reliability < _CARELESS else "reliable"


def write_ratings(file: Path, ratings: Sequence[Rating]) -> None:
    """Write ratings as JSON. Raises `CheckpointError` if the file cannot be written."""
    rows = [{**asdict(rating), "verdict": rating.verdict} for rating in ratings]
    write_text(file, to_json({"raters": rows}, indent=1, ensure_ascii=False))


def read_ratings(folder: Path) -> list[Rating]:
    """Return the ratings in a model's folder.

    Raises:
        CheckpointError: they cannot be read; the model may have been trained with another loss.
    """
    file = folder / RATERS_FILE
    try:
        rows = cast("list[dict[str, Any]]", parse_json(file.read_text(encoding="utf-8-sig"))["raters"])
        return [Rating(**{name: row[name] for name in Rating.__dataclass_fields__}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {file}: {error}; give a run whose trainer.loss has the type raters"
        ) from None


def ratings_table(ratings: Sequence[Rating], truth: Mapping[str, float] | None = None) -> str:
    """Return ratings as a table in Markdown, beside the true reliabilities where these are known."""
    columns = ["rater", "labels", "held out", "reliability", *(["true"] if truth else []), "verdict"]
    rows = [
        [
            in_markdown(rating.name),
            f"{rating.labels:,}",
            f"{rating.held_out:,}",
            f"{rating.reliability:.3f}" + (f" ± {rating.error:.3f}" if rating.error else ""),
            *([f"{truth[rating.name]:.2f}" if rating.name in truth else "–"] if truth else []),
            rating.verdict,
        ]
        for rating in ratings
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *rows])


def draw_ratings(ratings: Mapping[str, Sequence[Rating]], file: Path, truth: Mapping[str, float] | None = None) -> None:
    """Draw reliabilities with two standard errors, by run and rater; without matplotlib, do nothing."""
    names = [rating.name for rating in next(iter(ratings.values()))]
    if (figure := new_figure(7, 1.5 + 0.35 * len(names))) is None:
        return
    axes = figure.add_subplot(xlabel="reliability C", xlim=(0, 1))
    for i, (run, found) in enumerate(ratings.items()):
        places = [m + 0.2 * (i - (len(ratings) - 1) / 2) for m in range(len(found))]
        centres, errors = [one.reliability for one in found], [2 * one.error for one in found]
        label = f"{run}, ± 2 standard errors".replace("$", r"\$")
        axes.errorbar(centres, places, xerr=errors, fmt="o", capsize=3, label=label)
    if truth:
        known = [truth.get(name, float("nan")) for name in names]
        axes.plot(known, range(len(names)), "k|", markersize=16, label="true")
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), [printable(name, line=True)[:40].replace("$", r"\$") for name in names])
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")
