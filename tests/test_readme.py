"""The Python examples in README files run as they stand, and what the front page says of the project is so."""

import re
from pathlib import Path

import pytest
from forked_python import ForkedPython

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("plugins/*/README.md"))]


def blocks(readme: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_python_examples_run(readme: Path, tmp_path: Path, forked: ForkedPython):
    found = blocks(readme)
    assert found, f"{readme} shows no Python"
    for block in found:
        forked.run(block, tmp_path)


def test_the_main_example_trains_and_generates_in_15_lines():
    (example,) = blocks(ROOT / "README.md")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    assert 'LLAMA_ATTENTIONS_CLASSES["GQA"]' in example and "fit(" in example and "generate(" in example


def test_the_front_page_fits_on_a_screen_and_names_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = re.search("<!-- papers:.*<!-- end of papers -->", text, re.DOTALL)[0]
    lines = len(text.splitlines()) - len(papers.splitlines())
    assert lines <= 97  # 110 with the table of nine papers, which grows by a row each
    (block, *_) = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == [["make", "demo"], ["make", "test"]] and {"demo", "test"} <= set(targets)


def test_the_table_names_every_plugin():
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    for plugin in ROOT.glob("plugins/axon-*"):
        row = f"[{plugin.name}](plugins/{plugin.name})"
        assert row in table, f"no row for {plugin.name}: python docs/generate.py --front"


def test_the_readme_of_the_tests_says_what_each_file_guards():
    folder = Path(__file__).parent
    rows = re.findall(r"^\| (\[.*?) \| (.{20,}) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for files, _ in rows for name in re.findall(r"\[(\w+)\]\(\1\.py\)", files)]
    assert sorted(named) == sorted(path.stem for path in folder.glob("test_*.py"))
    assert all((folder / name).exists() for name in ("conftest.py", "fuzz", "out_of_tree", "file_operations.c"))
