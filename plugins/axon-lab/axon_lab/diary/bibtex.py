"""Papers as BibTeX, with LaTeX's special characters escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from axon_core import printable
from axon_lab.diary.notes import Note

__all__ = ["in_latex", "to_bibtex"]

_SPECIAL = {
    "\\": r"{\textbackslash}",
    "{": r"{\textbraceleft}",
    "}": r"{\textbraceright}",
    "~": r"{\textasciitilde}",
    "^": r"{\textasciicircum}",
    **{character: rf"{{\{character}}}" for character in "#$%&_"},
}


def in_latex(text: str) -> str:
    r"""Return text as LaTeX that shows it: special characters escaped, each in braces of its own.

    Braces stay balanced, because BibTeX counts them before LaTeX reads them: one of the text's own is written by its
    name. Letters of any alphabet stay as they are, for a LaTeX that reads UTF-8.

    >>> in_latex("100 % of R&D_{x}")
    '100 {\\%} of R{\\&}D{\\_}{\\textbraceleft}x{\\textbraceright}'
    """
    line = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"[\\{}~^#$%&_]", lambda found: _SPECIAL[found[0]], printable(line, line=True))


def to_bibtex(notes: Iterable[Note]) -> str:
    """Return an entry `@misc` for each paper, with what is known of it."""
    return "\n".join(map(_entry, notes))


def _entry(note: Note) -> str:
    head, card = note.head, note.paper
    authors = head.authors or (card.authors if card else ())
    year = head.year or (card.year if card else None)
    title = head.title or (card.title if card else None)
    fields = {
        **({"title": f"{{{in_latex(title)}}}"} if title else {}),  # a second pair of braces keeps capitals
        **({"author": " and ".join(map(_author, authors))} if authors else {}),
        **({"year": str(year)} if year else {}),
        "eprint": head.arxiv,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{head.arxiv}",
    }
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{arxiv:{head.arxiv},\n{lines}\n}}\n"


def _author(name: str) -> str:
    """Return one author; a name with `and` or a comma is in braces, so that BibTeX does not divide it."""
    if shortened := re.fullmatch(r"(.+?),? et al\.?", name):
        return f"{_author(shortened[1])} and others"
    words = in_latex(name)
    return f"{{{words}}}" if re.search(r"\band\b|,", name, re.IGNORECASE) else words
