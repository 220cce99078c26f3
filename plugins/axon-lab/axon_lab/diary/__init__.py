"""`axon diary`: notes on papers, as Markdown files that people and programs read."""

from axon_lab.diary.bibtex import in_latex, to_bibtex
from axon_lab.diary.notes import DamagedNote, Diary, Note, NoteHead, add_note, read_diary
from axon_lab.diary.pages import diary_page, focus_page, write_diary_pages

__all__ = [
    "DamagedNote",
    "Diary",
    "Note",
    "NoteHead",
    "add_note",
    "diary_page",
    "focus_page",
    "in_latex",
    "read_diary",
    "to_bibtex",
    "write_diary_pages",
]
