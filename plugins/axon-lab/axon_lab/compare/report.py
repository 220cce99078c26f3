"""The report of a comparison: `compare.json`, `compare.csv` and `compare.html`, and the text for the terminal."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from axon_core import Config, ConfigError, DataError, at, parse_json, printable, validate
from axon_core.checkpoint import write_text
from axon_lab.compare.conclusions import Conclusions, conclude
from axon_lab.compare.page import comparison_page
from axon_lab.compare.results import RecipeComparison
from axon_lab.compare.tables import aligned, comparison_table, to_csv
from axon_lab.compare.wording import Words

__all__ = ["comparison_text", "read_comparison", "write_report"]

FORMAT = 1
_SENTENCES = 12  # a longer list of differences that cannot be claimed is cut short on a terminal


class _Stored(Config):
    """What `compare.json` holds."""

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    """The version of this format."""
    comparison: RecipeComparison
    """The design and the results."""
    conclusions: Conclusions
    """What was computed from them; it is computed again by whoever reads the file."""


def write_report(comparison: RecipeComparison, out: Path) -> str:
    """Write `compare.json`, `compare.csv` and `compare.html` into the folder `out`, and return the text to print.

    Each file is replaced as a whole. The JSON file is first, since the others follow from it.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    conclusions = conclude(comparison)
    words = Words(comparison, conclusions)
    stored = _Stored(comparison=comparison, conclusions=conclusions).model_dump_json(indent=1) + "\n"
    files = {"compare.json": stored, "compare.csv": to_csv(words), "compare.html": comparison_page(words)}
    for name, content in files.items():
        write_text(out / name, content)
    return comparison_text(words)


def read_comparison(out: Path) -> RecipeComparison:
    """Return the comparison that `write_report` wrote into `out`.

    Raises:
        DataError: there is none, or it cannot be read.
        ConfigError: its fields are not those of a comparison.
    """
    file = out / "compare.json"
    try:
        found = parse_json(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{out} holds no comparison: compare.json is missing; give a folder of axon compare") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); run the comparison again with --out {out}") from None
    try:
        with at(source=str(file)):
            return validate(RecipeComparison, found["comparison"] if isinstance(found, dict) else found)
    except KeyError:
        raise ConfigError([((), f"{file} has no comparison; give a folder of axon compare")]) from None


def comparison_text(words: Words) -> str:
    """Return the report as text: the answers first, then what is missing, then the table."""
    lines = [words.measured(), "", words.headline()]
    for title, differences in words.groups():
        lines += ["", *([f"{title}:"] if title else [])]
        claimed = [each for each in differences if each.verdict in ("better", "worse")]
        long = len(differences) > _SENTENCES
        lines += [words.sentence(each) for each in (claimed if long else differences)]
        if long and len(claimed) < len(differences):
            lines.append(f"{len(differences) - len(claimed)} others: no difference can be claimed (compare.html).")
    lines += ["", *words.notes()] if words.notes() else []
    for title, found in (("Not finished", words.unfinished()), ("Left out, does not fit", words.left_out())):
        lines += ["", f"{title}:", *(f"  {each}" for each in found)] if found else []
    return "\n".join([*map(printable, lines), "", aligned(*comparison_table(words))])
