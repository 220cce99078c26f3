"""The diary: notes that are added and kept, what installed plugins say of them, exports, and files that are damaged."""

from __future__ import annotations

import json
import multiprocessing
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_core.cli import main
from axon_core.errors import ConfigError, UsageError
from axon_lab.diary.bibtex import in_latex, to_bibtex
from axon_lab.diary.notes import Note, NoteHead, add_note, arxiv_id, note_text, read_diary
from axon_lab.diary.pages import diary_page, focus_page

ROOT = Path(__file__).parents[3]


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["diary", *map(str, words)])
    found = capsys.readouterr()
    return code, found.out, found.err


def parsed(text: str) -> list[tuple[str, dict[str, str]]]:
    """Read BibTeX strictly: entries of a key and fields in balanced braces, nothing else between them."""
    entries: list[tuple[str, dict[str, str]]] = []
    at = 0

    def expect(pattern: str) -> str:
        nonlocal at
        found = re.compile(pattern).match(text, at)
        assert found, (pattern, text[at : at + 40])
        at = found.end()
        return found[1] if found.groups() else ""

    while at < len(text):
        key, fields = expect(r"@misc\{([^\s,{}%#~\\]+),\n"), dict[str, str]()
        while True:
            name = expect(r"  (\w+) = \{")
            begin, depth = at, 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            fields[name] = text[begin : at - 1]
            if text.startswith(",\n", at):
                at += 2
            else:
                break
        expect(r"\n\}\n\n?")
        entries.append((key, fields))
    return entries


def shown(latex: str) -> str:
    """What LaTeX shows for an escaped text."""
    named = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    named |= {"textbraceleft": "{", "textbraceright": "}"}
    assert not re.search(r"(?<!\\)[#$%&_~^]", latex)
    return re.sub(r"\{\\(\w+|[#$%&_])\}", lambda found: named.get(found[1], found[1]), latex)


def test_notes_are_added_and_appended_with_their_days(tmp_path: Path):
    first = add_note(tmp_path, "1803.10122", "A *model* of the world.", focus=["world-models"], day=date(2026, 1, 2))
    assert first.file.read_text() == (
        '+++\narxiv = "1803.10122"\nstatus = "read"\nfocus = ["world-models"]\n+++\n\n'
        "## 2026-01-02\n\nA *model* of the world.\n"
    )
    add_note(tmp_path, "arXiv:1803.10122v4", "More.", title="World Models", focus=["rl"], day=date(2026, 1, 3))
    add_note(tmp_path, "https://arxiv.org/abs/hep-th/9901001v2", "")
    world, old = read_diary(tmp_path).notes
    assert world.text == "## 2026-01-02\n\nA *model* of the world.\n\n## 2026-01-03\n\nMore.\n"
    assert world.title == "World Models" and world.head.focus == ("world-models", "rl") and world.status == "read"
    assert old.file.name == "hep-th_9901001.md" and old.status == "wanted" and old.title == "arXiv hep-th/9901001"
    assert add_note(tmp_path, "1803.10122", "", status="wanted").text == world.text


def test_a_paper_of_an_installed_plugin_is_implemented_without_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from axon_core.papers import cards

    paper = next(card.paper for card in cards() if card.paper and len(card.paper.claim) > 1)
    (tmp_path / f"{paper.arxiv}.md").write_text(note_text(NoteHead(arxiv=paper.arxiv, focus=("parts",)), ""))
    add_note(tmp_path, "2304.15004", "x", title="Mirage", focus=["parts"])
    code, out, _ = run(capsys, "list", "--diary", tmp_path, "--status", "implemented", "--json")
    (found,) = json.loads(out)["papers"]
    assert code == 0 and found["plugin"] == paper.id and found["title"] == paper.title
    assert [claim["id"] for claim in found["claims"]] == [claim.id for claim in paper.claim]
    assert "implemented" not in (tmp_path / f"{paper.arxiv}.md").read_text()
    page = focus_page(read_diary(tmp_path), "parts")
    assert page.index(f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}), implemented.") < page.index("## Mirage")
    assert f"`{paper.id}`" in page and page.count("\n- ") == len(paper.claim)
    assert f"`{paper.id}`, {len(paper.claim)} claims |" in diary_page(read_diary(tmp_path))


def test_list_and_search_find_what_they_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    add_note(tmp_path, "2304.15004", "Exact match jumps.", title="Mirage", focus=["scaling-laws"])
    add_note(tmp_path, "1803.10122", "", title="World Models", focus=["world-models"])
    for words, expected in (
        (["list"], ["1803.10122", "2304.15004"]),
        (["list", "--status", "wanted"], ["1803.10122"]),
        (["list", "--focus", "scaling-laws"], ["2304.15004"]),
        (["search", "EXACT", "mirage"], ["2304.15004"]),
        (["search", "exact", "world"], []),
        (["search", "models"], ["1803.10122"]),
    ):
        code, out, _ = run(capsys, *words, "--diary", tmp_path, "--json")
        assert (code, [paper["arxiv"] for paper in json.loads(out)["papers"]]) == (0, expected)
    code, _, err = run(capsys, "list", "--focus", "cats", "--diary", tmp_path)
    assert code == 2 and "no paper has the focus 'cats'; known: scaling-laws, world-models" in err


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["add", "../../etc/passwd", "--note", "x"], "an arXiv id looks like 1706.03762"),
        (["add", "1706.3", "--note", "x"], "an arXiv id looks like"),
        (["add", "1706.03762", "--focus", "A b"], "focus"),
        (["add", "1706.03762", "--title", "a\x1b[2Jb"], "title"),
        (["add", "1706.03762", "--status", "known"], "known"),
        (["list", "--diary", "nowhere"], "there is no diary at nowhere; begin one with `axon diary add"),
    ],
)
def test_wrong_use_is_told_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], rule: str
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2 and rule in err and "\x1b" not in err
    assert not list(tmp_path.rglob("*.md"))


DAMAGED = {
    "no head": "just text",
    "not TOML": "+++\ntitle = \n+++\n",
    "unfinished": '+++\narxiv = "2304.15004"\n',
    "no id": '+++\ntitle = "x"\n+++\n',
    "another id": '+++\narxiv = "2304.15005"\n+++\n',
    "strange field": '+++\narxiv = "2304.15004"\nstars = 5\n+++\n',
    "strange status": '+++\narxiv = "2304.15004"\nstatus = "known"\n+++\n',
    "bytes": b"+++\n\xff\n+++\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_note_is_named_and_the_others_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    add_note(tmp_path, "1803.10122", "x", title="World Models")
    file, text = tmp_path / "2304.15004.md", DAMAGED[kind]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = run(capsys, "list", "--diary", tmp_path)
    assert code == 1 and "World Models" in out and str(file) in err and "Traceback" not in err
    code, out, _ = run(capsys, "search", "world", "--diary", tmp_path, "--json")
    assert code == 1 and [one["file"] for one in json.loads(out)["damaged"]] == [str(file)]
    with pytest.raises(ConfigError):  # and nothing is written over it
        add_note(tmp_path, "2304.15004", "y")
    assert file.read_bytes() == (text if isinstance(text, bytes) else text.encode())


def _add_until_in(folder: Path, number: int) -> None:
    while True:
        try:
            add_note(folder, "1803.10122", f"note {number}")
        except UsageError as error:
            assert "process" in str(error)
        else:
            return


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_until_in, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    (note,) = read_diary(tmp_path).notes
    assert {f"note {number}" for number in range(4)} == {*re.findall(r"note \d", note.text)}


def test_a_write_that_fails_leaves_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = add_note(tmp_path, "1803.10122", "first").file
    before = file.read_text()
    monkeypatch.setattr(
        Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(Exception, match="free some space"):
        add_note(tmp_path, "1803.10122", "second")
    assert file.read_text() == before and [one.name for one in tmp_path.glob("*.md")] == ["1803.10122.md"]


def test_hostile_notes_are_text_on_pages_and_terminals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hostile = "<script>alert(1)</script> [x](javascript:y) `z` | \x1b[2J\n\n# loud\n- one\n1. two"
    add_note(tmp_path, "1803.10122", hostile, title="<b>T|</b> [u](v)", focus=["rl"])
    page = focus_page(read_diary(tmp_path), "rl")
    assert "<script" not in page and "<b>" not in page and "[x](javascript" not in page and "\x1b" not in page
    assert "\n## loud\n- one\n1. two" in page
    assert all(
        row.count(" | ") == 3 for row in diary_page(read_diary(tmp_path)).splitlines() if row.startswith("| &lt;")
    )
    for words in (["list"], ["search", "alert"], ["export", "--bibtex"], ["list", "--json"]):
        _, out, _ = run(capsys, *words, "--diary", tmp_path)
        assert "\x1b" not in out
    code, out, _ = run(capsys, "pages", "--out", tmp_path / "site", "--diary", tmp_path)
    assert code == 0 and (tmp_path / "site/diary-rl.md").read_text() == page and "diary.md" in out


PRINTED = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1).map(
    lambda text: " ".join(text.split()) or "x"
)


@given(PRINTED)
def test_latex_shows_the_text_and_its_braces_balance(text: str):
    latex = in_latex(text)
    assert shown(latex) == text
    depth = 0
    for character in latex:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0


def test_bibtex_has_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    head = NoteHead(
        arxiv="2304.15004",
        title="100 % of {A & B}",
        authors=("Ann Å. One", "Two and Co, Ltd.", "Three et al."),
        year=2023,
    )
    notes = [Note(Path(), head, ""), Note(Path(), NoteHead(arxiv="hep-th/9901001"), "")]
    (key, fields), (_, other) = parsed(to_bibtex(notes))
    assert key == "arxiv:2304.15004" and fields["eprint"] == "2304.15004" and fields["year"] == "2023"
    assert fields["title"] == r"{100 {\%} of {\textbraceleft}A {\&} B{\textbraceright}}"
    assert fields["author"] == "Ann Å. One and {Two and Co, Ltd.} and Three and others"
    assert other == {
        "eprint": "hep-th/9901001",
        "archivePrefix": "arXiv",
        "url": "https://arxiv.org/abs/hep-th/9901001",
    }
    add_note(tmp_path, "1803.10122", "", title="World Models")
    code, _, _ = run(capsys, "export", "--bibtex", "--diary", tmp_path, "--output", tmp_path / "papers.bib")
    assert code == 0 and parsed((tmp_path / "papers.bib").read_text())[0][1]["title"] == "{World Models}"


@pytest.mark.skipif(not (ROOT / "diary").is_dir(), reason="needs the repository")
def test_the_repositorys_diary_is_whole():
    diary = read_diary(ROOT / "diary")
    assert not diary.damaged and len(diary.notes) >= 10
    assert all(note.head.title and note.head.focus for note in diary.notes)
    assert len(parsed(to_bibtex(diary.notes))) == len(diary.notes)


def test_ids_are_found_in_what_people_paste():
    for text in (
        "1706.03762",
        "arXiv:1706.03762v5",
        "https://arxiv.org/pdf/1706.03762.pdf",
        " arxiv.org/abs/1706.03762 ",
    ):
        assert arxiv_id(text) == "1706.03762"
