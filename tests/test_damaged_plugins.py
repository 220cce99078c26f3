"""One damaged file of a plugin is shown as damaged, and nothing else notices: listing, training, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from axon_core.cli import main
from axon_core.registry.discovery import discover
from axon_core.registry.provenance import require

DAMAGES = {
    "brackets": "x = " + "[" * 5000,
    "digits": "x = " + "9" * 5000,
    "bytes": "\udcff",
    "not TOML": "[",
}
CARD = """
id = "{id}"
title = "T"
authors = ["A"]
year = 2024
arxiv = "2401.01234"
summary = "S."
"""


def installed(site, card: str, recipe: str) -> None:
    for name, text, plan in (("bad", card, recipe), ("good", CARD.format(id="good"), 'summary = "fine"')):
        folder = site.folder / f"axon_{name}"
        site.install(f"axon-{name}", {"axon.v1.paper": {name: f"axon_{name}"}}, {f"axon_{name}/__init__.py": ""})
        (folder / "recipes").mkdir()
        (folder / "paper.toml").write_text(text, "utf-8", "surrogateescape")
        (folder / f"recipes/{name}-recipe.toml").write_text(plan, "utf-8", "surrogateescape")


@pytest.mark.parametrize("text", DAMAGES.values(), ids=list(DAMAGES))
@pytest.mark.parametrize("what", ["card", "recipe"])
def test_a_damaged_card_or_recipe_hurts_no_other(site, what: str, text: str, capsys):
    card, recipe = CARD.format(id="bad"), 'summary = "fine"'
    installed(site, *((text, recipe) if what == "card" else (card, text)))
    for command in (["papers"], ["recipes"], ["search"], ["list"]):
        assert main([*command, "--json"]) == 0, command
        found = {json.dumps(row) for row in json.loads(capsys.readouterr().out)}
        if command != ["list"]:
            assert any(("good" in row and "fine" in row) or '"good"' in row for row in found), command
            assert any("bad" in row for row in found)
    assert main(["papers" if what == "card" else "recipes"]) == 0
    assert "damaged: " in capsys.readouterr().out
    assert main(["train", "good-recipe"]) == 2  # it says what this recipe lacks, and nothing of the other
    message = capsys.readouterr().err
    assert "trainer" in message and "bad" not in message and "bug in Axon" not in message


@pytest.mark.parametrize("version", ["0.0.1", "99.0"])
def test_an_empty_folder_of_metadata_before_the_real_one_hides_nothing(site, monkeypatch, tmp_path, version: str):
    site.install("axon-thing", {"axon.v1.command": {"thing": "axon_thing:command"}}, version="2.0")
    (tmp_path / "before" / f"axon_thing-{version}.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "before")
    site.install("axon-other")  # which scans again
    found = discover()
    assert [entry.source for entry in found.entries("command") if entry.key == "thing"] == ["axon-thing 2.0"]
    (problem,) = [problem for problem in found.problems if problem.distribution == "axon-thing"]
    assert "has no METADATA" in problem.what and "delete that folder" in problem.remedy
    require([{"group": "command", "key": "thing", "distribution": "axon-thing", "version": "2.0"}], "the model")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("axon ", {"train", "broken"}), ("axon br", {"broken"}), ("axon broken --", {"--help"}), ("axon tr", {"train"})],
)
def test_completion_runs_no_code_of_plugins(site, tmp_path, line: str, expected: set[str]):
    site.install(
        "axon-broken",
        {"axon.v1.command": {"broken": "axon_broken:command"}},
        {"axon_broken/__init__.py": f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit(3)"},
    )
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(site.folder),
        "_AXON_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = "import sys; from axon_core.cli import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    offered = {item.partition(",")[2] for item in done.stdout.splitlines()}
    assert expected <= offered and not done.stderr, done
    assert not (tmp_path / "ran").exists()
