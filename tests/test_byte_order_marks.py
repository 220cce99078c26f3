"""A byte order mark at the beginning of a text file, as editors on Windows write it, is no part of the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.text.tokenizer import ByteTokenizer, Tokenizer
from axon_core.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
MARK = b"\xef\xbb\xbf"


def test_a_recipe_with_one_is_read(tmp_path: Path):
    (file,) = (ROOT / "plugins/axon-xllama").rglob("recipes/xllama-tiny.toml")
    (tmp_path / "mine.toml").write_bytes(MARK + file.read_bytes())
    assert Recipe.load(str(tmp_path / "mine.toml")).tables == Recipe.load(str(file)).tables


def test_a_folder_whose_files_have_one_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ByteTokenizer().save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(MARK + file.read_bytes())
    (tmp_path / "manifest.json").unlink()  # an editor changed the file on purpose
    assert isinstance(Tokenizer.load(tmp_path), ByteTokenizer)
    (tmp_path / "mine.toml").write_bytes(MARK + b"[model]\n")
    assert main(["train", str(tmp_path / "mine.toml")]) == 2
    assert "TOML" not in capsys.readouterr().err  # it is read, and lacks what a recipe has


def test_every_reader_of_text_takes_one_away():
    """Files that people may have written; `known_papers.toml`, templates and scripts are Axon's own."""
    own = {"suggest.py", "project.py", "shown.py"}
    sources = [*(ROOT / "axon_core").rglob("*.py"), *(ROOT / "plugins").glob("*/axon_*/**/*.py")]
    plain = re.compile(r"""(?:read_text|decode|\.open)\((?:encoding=)?"utf-8"\)""")
    found = [str(path.relative_to(ROOT)) for path in sources if plain.search(path.read_text("utf-8"))]
    assert [path for path in found if Path(path).name not in own] == []
