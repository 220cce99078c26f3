"""Notes on papers: Markdown files that begin with a table in TOML, one file a paper.

+++
arxiv = "2304.15004"
title = "Are Emergent Abilities of Large Language Models a Mirage?"
status = "read"
focus = ["scaling-laws"]
+++

## 2026-12-01

What was noted on that day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from axon_core import Config, ConfigError, UsageError, at, parse_toml, printable, to_toml, validate
from axon_core.checkpoint import claimed_file, write_text, writing
from axon_core.papers import Paper, cards

__all__ = [
    "DamagedNote",
    "Diary",
    "Note",
    "NoteHead",
    "NoteStatus",
    "add_note",
    "arxiv_id",
    "implemented",
    "read_diary",
]

NoteStatus = Literal["wanted", "read", "implemented"]
_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}")
_HEAD = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*$\r?\n?(.*)", re.DOTALL | re.MULTILINE)
_MOST = 1 << 20
_Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")
]
_Focus = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]


class NoteHead(Config):
    """What a note's table says."""

    arxiv: Annotated[str, StringConstraints(pattern=rf"^({_ARXIV.pattern})$")]
    """The paper's arXiv id without the version: `1706.03762`."""
    title: _Line | None = None
    """The paper's title; left out if unknown."""
    authors: tuple[_Line, ...] = ()
    """Its authors, in the paper's order, as far as they are known."""
    year: int | None = Field(default=None, ge=1900, le=2200)
    """The year of its publication; left out if unknown."""
    status: NoteStatus = "wanted"
    """Whether it is to be read, was read, or is implemented; a paper that an installed plugin implements is the last
    without being written here."""
    focus: tuple[_Focus, ...] = ()
    """What it is about, in lower case with hyphens: `alignment`, `scaling-laws`, `world-models`."""


@dataclass(frozen=True)
class Note:
    """A note with what installed plugins say about its paper.

    Attributes:
        file: where it is.
        head: what its table says.
        text: the Markdown below.
        paper: the card of the plugin that implements the paper, if one is installed.
    """

    file: Path
    head: NoteHead
    text: str
    paper: Paper | None = None

    @property
    def status(self) -> NoteStatus:
        """The status: `implemented` if an installed plugin implements the paper, else what the table says."""
        return "implemented" if self.paper is not None else self.head.status

    @property
    def title(self) -> str:
        """The title that the note or the card has, or else the arXiv id."""
        return self.head.title or (self.paper.title if self.paper else f"arXiv {self.head.arxiv}")

    def has(self, words: Iterable[str]) -> bool:
        """Whether all words occur in it, in any case."""
        parts = [self.head.arxiv, self.title, *self.head.authors, *self.head.focus, self.text]
        text = "\n".join(parts).casefold()
        return all(word.casefold() in text for word in words)


@dataclass(frozen=True)
class DamagedNote:
    """A file that is no note.

    Attributes:
        file: where it is.
        reason: what is wrong with it, in one line.
    """

    file: Path
    reason: str


@dataclass(frozen=True)
class Diary:
    """All notes of a folder, by arXiv id, and the files that cannot be read."""

    notes: tuple[Note, ...]
    damaged: tuple[DamagedNote, ...] = field(default=())

    def chosen(self, status: str | None = None, focus: str | None = None, words: Sequence[str] = ()) -> list[Note]:
        """Return the notes of a status, a focus and with all words, as far as they are given."""
        return [
            note
            for note in self.notes
            if status in (None, note.status) and (focus is None or focus in note.head.focus) and note.has(words)
        ]

    @property
    def focuses(self) -> list[str]:
        """Every focus of a note, sorted."""
        return sorted({focus for note in self.notes for focus in note.head.focus})


def arxiv_id(text: str) -> str:
    """Return the arXiv id in what a user gives: an id, `arXiv:…`, or an address, without the version.

    >>> arxiv_id("https://arxiv.org/abs/1706.03762v5"), arxiv_id("arXiv:hep-th/9901001")
    ('1706.03762', 'hep-th/9901001')

    Raises:
        UsageError: there is none.
    """
    found = re.sub(r"^(https?://)?(www\.)?arxiv\.org/(abs|pdf)/|^arxiv:", "", text.strip(), flags=re.IGNORECASE)
    found = re.sub(r"(v\d+)?(\.pdf)?$", "", found)
    if not _ARXIV.fullmatch(found):
        raise UsageError(f"an arXiv id looks like 1706.03762 or hep-th/9901001, got {printable(text, line=True)!r}")
    return found


def implemented() -> dict[str, Paper]:
    """Return the cards of the installed plugins by their papers' arXiv ids; damaged cards are left out."""
    return {card.paper.arxiv: card.paper for card in cards() if card.paper is not None}


def read_diary(folder: Path) -> Diary:
    """Return all notes of a folder; one that cannot be read does not affect the others.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no diary at {folder}; begin one with `axon diary add ID --note …`")
    known, notes, damaged = implemented(), list[Note](), list[DamagedNote]()
    for file in sorted(folder.glob("*.md")):
        if file.name == "README.md":
            continue
        try:
            notes.append(_read(file, known))
        except ConfigError as error:
            damaged.append(DamagedNote(file, printable(str(error), line=True)))
    return Diary(tuple(notes), tuple(damaged))


def add_note(
    folder: Path,
    arxiv: str,
    text: str,
    *,
    title: str | None = None,
    status: NoteStatus | None = None,
    focus: Sequence[str] = (),
    day: date | None = None,
) -> Note:
    """Write a note with its day; to a paper that has one it is appended, and what else is given replaces the table's.

    Processes that add at the same time wait for none: a second one is refused, and nothing is lost.

    Args:
        folder: the diary, made if it is not there.
        arxiv: the paper, as `arxiv_id` takes it.
        text: the note, in Markdown; may be empty if the paper has a note or something else is given.
        title: the paper's title; left out, that of the installed card, if there is one.
        status: left out, the note's own; of a new one `read` if there is a text, else `wanted`.
        focus: joins what the note has.
        day: left out, today.

    Raises:
        UsageError: the id, the status or a focus breaks a rule, or another process adds to the same note.
        ConfigError: the paper's note is damaged.
        CheckpointError: the file cannot be written.
    """
    arxiv, text = arxiv_id(arxiv), text.strip().replace("\r\n", "\n")
    if len(text) > _MOST:
        raise UsageError(f"a note has at most {_MOST:,} characters, got {len(text):,}; divide it")
    file, known = folder / f"{arxiv.replace('/', '_')}.md", implemented()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with claimed_file(file):
        before = _read(file, known) if file.exists() else None
        card = known.get(arxiv)
        tables = (
            before.head.model_dump(exclude_defaults=True)
            if before
            else {"arxiv": arxiv, "status": "read" if text else "wanted", **(_of_card(card) if card else {})}
        )
        tables |= {"title": title} if title else {}
        tables |= {"status": status} if status else {}
        tables["focus"] = [*dict.fromkeys([*tables.get("focus", ()), *focus])]
        with at(source="the options of axon diary add"):
            head = validate(NoteHead, tables)
        body = before.text if before else ""
        if text:
            body = f"{body.rstrip()}\n\n## {(day or date.today()).isoformat()}\n\n{text}\n".lstrip()
        write_text(file, note_text(head, body))
    return Note(file, head, body, card)


def note_text(head: NoteHead, text: str) -> str:
    """Return the file of a note."""
    tables = {name: value for name, value in head.model_dump(mode="json").items() if value not in (None, [])}
    return f"+++\n{to_toml(tables)}\n+++\n" + (f"\n{text.strip()}\n" if text.strip() else "")


def _of_card(card: Paper) -> dict[str, object]:
    return {"title": card.title, "authors": card.authors, "year": card.year}


def _read(file: Path, known: dict[str, Paper]) -> Note:
    with at(source=str(file)):
        try:
            if file.stat().st_size > 4 * _MOST:
                raise ConfigError([((), f"a note has at most {4 * _MOST:,} bytes; divide it")])
            text = file.read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            raise ConfigError([((), f"cannot be read: {error}")]) from error
        if (found := _HEAD.fullmatch(text)) is None:
            raise ConfigError([((), "a note begins with a line +++, a table in TOML, and a line +++")])
        try:
            tables = parse_toml(found[1])
        except ValueError as error:
            raise ConfigError([((), f"the table between the lines +++ is not TOML: {error}")]) from error
        head = validate(NoteHead, tables)
        if file.stem != head.arxiv.replace("/", "_"):
            name = f"{head.arxiv.replace('/', '_')}.md"
            raise ConfigError([(("arxiv",), f"is {head.arxiv}, so the file must be called {name}")])
    return Note(file, head, found[2].strip() + "\n" if found[2].strip() else "", known.get(head.arxiv))
