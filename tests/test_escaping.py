"""What comes from files, arguments and models reaches a terminal, a page and JSON as text, and steers nothing."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from axon_core.cli import main
from axon_core.cli.output import echo, echo_generated, echo_renewed, print_json
from axon_core.escaping import in_markdown, printable, printable_json

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eevil\u2066\x7f\ud800"
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class Terminal(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


def is_plain(text: str) -> bool:
    return not any(
        (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t")
        or unicodedata.bidirectional(c) in BIDI
        for c in text
    )


@given(st.text(st.characters()))
@example(HOSTILE)
def test_nothing_unfit_is_left_and_nothing_else_is_changed(text: str) -> None:
    shown = printable(text)
    assert is_plain(shown)
    assert "\n" not in printable(text, line=True) and "\t" not in printable(text, line=True)
    if is_plain(text):
        assert shown == text or "\u061c" in text
    assert printable(shown) == shown


def test_ordinary_text_stays() -> None:
    text = "naïve 中文 עברית العربية 👩‍👩‍👧 ½ ⁇\n\tindented"
    assert printable(text) == text


@given(st.text(st.characters()))
@example(HOSTILE)
def test_json_says_the_same(text: str) -> None:
    shown = printable_json(json.dumps([text], ensure_ascii=False))
    assert is_plain(shown) and json.loads(shown) == [text]


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "[x](javascript:alert(1))", "a|b", "`x`", "<img src=x onerror=y>", "a\n# b"]
)
def test_a_page_shows_what_was_written(text: str) -> None:
    import html
    import re

    made = in_markdown(text)
    assert "<" not in made and "\n" not in made
    assert not re.search(r"(?<!\\)[`*\[\]|]", made)
    assert html.unescape(re.sub(r"\\([`*\[\]|])", r"\1", made)) == text.replace("\n", "\\\\n")


def test_what_axon_says_is_text_everywhere(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    echo(HOSTILE)
    echo(HOSTILE, err=True)
    assert all(is_plain(stream) for stream in capsys.readouterr())
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    echo(HOSTILE)
    print_json({"title": HOSTILE})
    assert is_plain(terminal.shown)


def test_a_model_s_text_is_exact_in_a_pipe_and_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = HOSTILE.replace("\ud800", "")  # no model writes that: it is no text
    monkeypatch.setattr(sys, "stdout", pipe := io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline=""))
    echo_generated(written)
    pipe.flush()
    assert pipe.buffer.getvalue() == f"{written}\n".encode()
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    for character in HOSTILE:  # in pieces, as they are streamed
        echo_generated(character, nl=False)
    assert is_plain(terminal.shown) and "evil" in terminal.shown


def test_a_line_of_progress_renews_itself_and_nothing_in_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    echo_renewed(f"1/2 {HOSTILE}", last=False)
    assert terminal.shown.startswith("\r\x1b[K1/2 ")
    assert is_plain(terminal.shown.removeprefix("\r\x1b[K"))


def test_an_encoding_without_the_letters_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    echo("1 ± 2 …")
    stream.flush()
    assert stream.buffer.getvalue() == b"1 \\xb1 2 \\u2026\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["papers"],
        ["search"],
        ["recipes"],
        ["list"],
        ["--help"],
        ["papers", "--json"],
        ["info", HOSTILE],
        [HOSTILE],
        ["train", HOSTILE],
        ["train", "--wrong" + HOSTILE],
        ["generate", HOSTILE, "--prompt", "x"],
        ["evaluate", HOSTILE],
        ["train", "evil-recipe"],
        ["--debug", "train", HOSTILE],
    ],
)
def test_no_command_passes_control_characters_on(arguments: list[str], site, capsys, monkeypatch) -> None:
    monkeypatch.setenv("AXON_PLUGINS", "axon-evil")
    title = json.dumps(HOSTILE.replace("\ud800", "")).replace("\x7f", "\\u007F")  # a TOML string too
    card = f"""
        id = "evil"
        title = {title}
        authors = ["A"]
        year = 2020
        arxiv = "2001.00001"
        summary = {title}
        """
    files = {
        "axon_evil/__init__.py": "",
        "axon_evil/paper.toml": card,
        "axon_evil/recipes/evil-recipe.toml": f"summary = {title}\nmodel = {title}",
    }
    site.install("axon-evil", {"axon.v1.paper": {"evil": "axon_evil"}}, files, version="1.0\x1b[31m")
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code in (0, 1, 2) and (out or err)
    assert is_plain(out) and is_plain(err)


def test_warnings_are_text_too() -> None:
    """In a process of its own: the test runner cannot pass a lone surrogate in a captured record on."""
    code = f"""
import logging
from axon_core.cli import main
main(["list"])
logging.getLogger("axon").warning("the file %s is odd", {HOSTILE!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "is odd" in done.stderr and is_plain(done.stderr)


ALLOWED = {"axon_core/cli/output.py", "axon_core/training/callbacks/surfaces.py"}


def test_everything_is_printed_in_one_place() -> None:
    found = []
    for file in [*(ROOT / "axon_core").rglob("*.py"), *(ROOT / "plugins").glob("*/axon_*/**/*.py")]:
        name = file.relative_to(ROOT).as_posix()
        if name in ALLOWED or "/templates/" in name:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                *("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "Console"),
            ):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node.func)}")
    assert not found, f"print by axon_core.cli.output, which keeps control characters off the terminal: {found}"


def run(arguments: str, stdout: int | None) -> tuple[int, str]:
    """Run a command with an output that does not work, None for none at all; return its exit code and its words."""
    code = f"import sys; from axon_core.cli import main; sys.exit(main({arguments.split()!r}))"
    closed = (lambda: os.close(1)) if stdout is None else None
    done = subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, preexec_fn=closed)
    return done.returncode, done.stderr.decode()


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head -0` does
    assert run("search", writer) == (1, "")
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_under_the_output_is_named() -> None:
    with open("/dev/full", "wb") as full:
        assert run("search", full.fileno()) == (1, "Error: No space left on device\n")


def test_a_closed_output_is_named() -> None:
    code, words = run("search", None)
    assert code == 2 and words.startswith("Error: the standard output is closed") and "Traceback" not in words
