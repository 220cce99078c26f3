"""`axon diary`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from axon_core import UsageError
from axon_core.checkpoint import write_text
from axon_core.cli import echo, json_option, print_json, print_table
from axon_lab.diary.bibtex import to_bibtex
from axon_lab.diary.notes import Diary, Note, NoteStatus, add_note, read_diary
from axon_lab.diary.pages import write_diary_pages

F = TypeVar("F", bound=Callable[..., Any])
_STATUS = click.Choice(get_args(NoteStatus))


def _diary(command: F) -> F:
    return click.option(
        "--diary",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("diary"),
        show_default=True,
        help="The folder of notes.",
    )(command)


@click.group("diary")
def command() -> None:
    """Keep notes on papers, one Markdown file each."""


@command.command("add")
@click.argument("arxiv", metavar="ID")
@click.option("--note", default="", help="What to note, in Markdown; added to earlier notes, with the day.")
@click.option("--title", help="The paper's title.")
@click.option("--focus", multiple=True, metavar="NAME", help="What it is about, as scaling-laws; repeatable.")
@click.option("--status", type=_STATUS, help="By default `read` with a first note, `wanted` without.")
@_diary
def note_paper(arxiv: str, note: str, title: str | None, focus: Sequence[str], status: Any, folder: Path) -> None:
    """Add a note on the paper with the arXiv id ID."""
    found = add_note(folder, arxiv, note, title=title, focus=focus, status=status)
    echo(f"{found.title}: {found.status}, in {found.file}")


@command.command("list")
@click.option("--status", type=_STATUS, help="Only these.")
@click.option("--focus", metavar="NAME", help="Only these.")
@_diary
@json_option
@click.pass_context
def list_papers(ctx: click.Context, status: str | None, focus: str | None, folder: Path, as_json: bool) -> None:
    """List the papers of the diary."""
    diary = read_diary(folder)
    if focus is not None and focus not in diary.focuses:
        raise UsageError(f"no paper has the focus {focus!r}; known: {', '.join(diary.focuses) or 'none'}")
    _show(ctx, diary, diary.chosen(status, focus), as_json)


@command.command("search")
@click.argument("words", nargs=-1, required=True)
@_diary
@json_option
@click.pass_context
def search_papers(ctx: click.Context, words: Sequence[str], folder: Path, as_json: bool) -> None:
    """List the papers whose id, title, authors, focus or notes have all WORDS."""
    diary = read_diary(folder)
    _show(ctx, diary, diary.chosen(words=words), as_json)


@command.command("export")
@click.option("--bibtex", is_flag=True, required=True, help="As BibTeX.")
@click.option("--status", type=_STATUS, help="Only these.")
@click.option("--focus", metavar="NAME", help="Only these.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; left out, printed.")
@_diary
@click.pass_context
def export_papers(
    ctx: click.Context, bibtex: bool, status: str | None, focus: str | None, output: Path | None, folder: Path
) -> None:
    """Export the papers for a list of references."""
    diary = read_diary(folder)
    text = to_bibtex(diary.chosen(status, focus))
    if output is None:
        echo(text, nl=False)
    else:
        write_text(output, text)
        echo(f"Written to {output}")
    _finish(ctx, diary)


@command.command("pages")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder to write to.")
@_diary
@click.pass_context
def export_diary(ctx: click.Context, out: Path, folder: Path) -> None:
    """Write the diary as pages in Markdown, one for each focus."""
    diary = read_diary(folder)
    for page in write_diary_pages(diary, out):
        echo(f"Written to {page}")
    _finish(ctx, diary)


def _show(ctx: click.Context, diary: Diary, notes: Sequence[Note], as_json: bool) -> None:
    if as_json:
        damaged = [{"file": str(one.file), "reason": one.reason} for one in diary.damaged]
        print_json({"papers": [_facts(note) for note in notes], "damaged": damaged})
    else:
        rows = [
            (note.head.arxiv, note.status, ", ".join(note.head.focus), note.title, note.paper.id if note.paper else "")
            for note in notes
        ]
        print_table(["arXiv", "status", "focus", "title", "plugin"], rows)
    _finish(ctx, diary)


def _finish(ctx: click.Context, diary: Diary) -> None:
    """Name damaged notes, and exit with 1 if there are any."""
    for one in diary.damaged:
        echo(f"Error: {one.reason}", err=True)
    ctx.exit(1 if diary.damaged else 0)


def _facts(note: Note) -> dict[str, Any]:
    paper = note.paper
    claims = [{"id": claim.id, "where": claim.where, "text": claim.text} for claim in paper.claim] if paper else []
    return {
        **note.head.model_dump(mode="json"),
        "title": note.title,
        "status": note.status,
        "plugin": paper and paper.id,
        "claims": claims,
        "note": note.text,
        "file": str(note.file),
    }
