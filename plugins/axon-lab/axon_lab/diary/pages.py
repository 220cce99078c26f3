"""The diary as pages: one that lists all papers, and one for each focus, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from axon_core import in_markdown
from axon_core.checkpoint import write_text, writing
from axon_lab.diary.notes import Diary, Note

__all__ = ["diary_page", "focus_page", "write_diary_pages"]

_MARK = re.compile(r"\s*(#{1,6}|[-*+]|\d{1,9}[.)])(?=\s)")
_HEADINGS = ("implemented", "read", "wanted")


def write_diary_pages(diary: Diary, folder: Path) -> list[Path]:
    """Write `diary.md` and `diary-<focus>.md` for each focus; return their paths.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pages = {"diary.md": diary_page(diary)}
    pages |= {f"diary-{focus}.md": focus_page(diary, focus) for focus in diary.focuses}
    for name, text in pages.items():
        write_text(folder / name, text)
    return [folder / name for name in pages]


def diary_page(diary: Diary) -> str:
    """Return the page of all papers by status, with links to the pages `diary-<focus>.md` beside it."""
    parts = ["# Reading diary", "Papers that are to be read, were read, or are implemented by a plugin."]
    if diary.focuses:
        links = [
            f"[{focus_name(focus)}](diary-{focus}.md) ({len(diary.chosen(focus=focus))})" for focus in diary.focuses
        ]
        parts.append(f"By focus: {', '.join(links)}.")
    for status in _HEADINGS:
        if notes := diary.chosen(status=status):
            rows = [_row(note) for note in notes]
            head = "| paper | arXiv | focus | plugin, claims |\n|---|---|---|---|"
            parts += [f"## {status.capitalize()}", "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


def focus_page(diary: Diary, focus: str) -> str:
    """Return the page of one focus: its papers with their notes, the implemented ones first."""
    notes = sorted(diary.chosen(focus=focus), key=lambda note: (_HEADINGS.index(note.status), note.head.arxiv))
    parts = [f"# {focus_name(focus).capitalize()}"]
    for note in notes:
        parts += _section(note)
    return "\n\n".join(parts) + "\n"


def focus_name(focus: str) -> str:
    """Return a focus for people.

    >>> focus_name("scaling-laws")
    'scaling laws'
    """
    return focus.replace("-", " ")


def _row(note: Note) -> str:
    links = ", ".join(f"[{focus_name(focus)}](diary-{focus}.md)" for focus in note.head.focus)
    plugin = f"`{note.paper.id}`, {len(note.paper.claim)} claims" if note.paper else ""
    return f"| {in_markdown(note.title)} | {_arxiv(note)} | {links} | {plugin} |"


def _section(note: Note) -> list[str]:
    head = note.head
    by = ", ".join(map(in_markdown, head.authors))
    facts = [by, str(head.year or ""), _arxiv(note), note.status]
    parts = [f"## {in_markdown(note.title)}", ", ".join(fact for fact in facts if fact) + "."]
    if (paper := note.paper) is not None:
        claims = [f"- {in_markdown(claim.where)}: {in_markdown(claim.text)}" for claim in paper.claim]
        parts.append("\n".join([f"The plugin of the paper `{paper.id}` implements it. Its claims:", "", *claims]))
    if note.text:
        parts.append(_text(note.text.splitlines()))
    return parts


def _text(lines: Sequence[str]) -> str:
    """Return a note's lines as they read: lists, headings a level down, all else as text, without HTML or links."""
    result: list[str] = []
    for line in lines:
        found = _MARK.match(line)
        mark, rest = (found[0], line[found.end() :].strip()) if found else ("", line.strip())
        if mark.strip().startswith("#"):
            mark = "#" * min(len(mark.strip()) + 1, 6)
        result.append(f"{mark} {in_markdown(rest)}".rstrip() if mark else in_markdown(rest))
    return "\n".join(result)


def _arxiv(note: Note) -> str:
    return f"[{note.head.arxiv}](https://arxiv.org/abs/{note.head.arxiv})"
