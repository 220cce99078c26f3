"""The verdicts that a package was released with, as `axon info` shows them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.papers.claims_file import read_claims, write_claims

RAISES = "raise RuntimeError('the plugin was imported')"
CHECKS = """
    from axon_core.papers import Outcome

    def lift(): return Outcome(True, "largest difference 1e-16")
    def drag(): return Outcome(False, "loss", (1.0, 2.0), (3, 4))
"""
CARD = """
    id = "kites"
    title = "On Kites"
    authors = ["A. Wind"]
    year = 2020
    arxiv = "2001.00001"
    summary = "Kites fly."

    [[claim]]
    id = "lift"
    where = "Eq. 1"
    text = "Lift is linear."
    paper = "exact"
    check = "axon_kites.claims:lift"
    scale = "exact"
    budget_s = 60

    [[claim]]
    id = "drag"
    where = "Table 1"
    text = "Drag is small."
    paper = "0.1"
    check = "axon_kites.claims:drag"
    scale = "scaled"
    budget_s = 60

    [[claim]]
    id = "later"
    where = "Table 2"
    text = "Later."
    paper = "0.1"
    check = "axon_kites.claims:drag"
    scale = "scaled"
    budget_s = 60

    [[look_up]]
    id = "main-result"
    what = "The main table."
"""


@pytest.fixture
def package(site) -> Path:
    """An installed package with the verdicts of two of its three claims, whose code raises when it is imported."""
    site.install("axon-kites", {"axon.v1.paper": {"kites": "axon_kites"}}, {
        "axon_kites/__init__.py": "",
        "axon_kites/claims.py": CHECKS,
        "axon_kites/paper.toml": CARD,
    })  # fmt: skip
    folder = site.folder / "axon_kites"
    released = folder / "claims.json"
    assert main(["reproduce", "kites", "--out", str(released)]) == 1
    contents = read_claims(released)
    write_claims(released, contents.without("kites", ["lift", "drag"]))
    for name in [name for name in sys.modules if name.startswith("axon_kites")]:
        del sys.modules[name]
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    (folder / "__init__.py").write_text(RAISES)
    return folder


def shown(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["info", *arguments, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    return record


@pytest.mark.parametrize("key", ["kites", "axon-kites", "axon-kites:kites"])
def test_they_are_read_without_the_plugins_code(package: Path, key: str, capsys) -> None:
    record = shown(capsys, key)
    assert (record["kind"], record["key"], record["version"], record["error"]) == ("paper", "kites", "1.0", None)
    lift, drag, later = record["claims"]
    assert (lift["verdict"], lift["measured_version"], lift["stale"]) == ("reproduced", "1.0", False)
    assert lift["date"].startswith("20") and lift["paper"] == "exact"
    assert (drag["verdict"], drag["values"], drag["seeds"]) == ("failed", [1.0, 2.0], [3, 4])
    assert later["verdict"] == "not measured" and not later["stale"]
    assert record["look_up"] == ["main-result"]
    assert not any(name.startswith("axon_kites") for name in sys.modules)


def test_they_are_printed_with_date_and_version(package: Path, capsys) -> None:
    capsys.readouterr()
    assert main(["info", "kites"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("paper kites: axon-kites 1.0\nOn Kites\nA. Wind, 2020: arXiv 2001.00001\n\nKites fly.\n")
    (row,) = [line for line in out.splitlines() if line.startswith("lift")]
    assert "reproduced" in row and row.endswith(", 1.0") and "stale" not in out
    assert "1 claim to be looked up: main-result" in out and "axon reproduce kites" in out


@pytest.mark.parametrize("change", ["version", "statement"])
def test_a_verdict_of_another_version_or_statement_is_stale(package: Path, site, change: str, capsys) -> None:
    if change == "version":
        shutil.rmtree(site.folder / "axon_kites-1.0.dist-info")
        site.install("axon-kites", {"axon.v1.paper": {"kites": "axon_kites"}}, version="1.1")
    else:
        card = package / "paper.toml"
        card.write_text(card.read_text().replace("Lift is linear.", "Lift is quadratic."))
    stale = [claim["stale"] for claim in shown(capsys, "kites")["claims"]]
    assert stale == [True, change == "version", False]
    assert main(["info", "kites"]) == 0
    assert "reproduced (stale)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[", "{}", '{"kind": "axon claims", "format": 99}', "\x00"])
def test_a_damaged_file_is_named_and_the_card_is_shown(package: Path, text: str, capsys) -> None:
    (package / "claims.json").write_text(text)
    record = shown(capsys, "kites")
    assert str(package / "claims.json") in record["error"]
    assert [claim["verdict"] for claim in record["claims"]] == ["not measured"] * 3
    assert main(["info", "kites"]) == 0
    assert "Its verdicts cannot be shown: " in capsys.readouterr().out


def test_claims_of_other_papers_in_the_file_are_not_shown(package: Path, capsys) -> None:
    file = package / "claims.json"
    file.write_text(file.read_text().replace('"paper": "kites"', '"paper": "balloons"'))
    assert [claim["verdict"] for claim in shown(capsys, "kites")["claims"]] == ["not measured"] * 3


def test_a_package_without_verdicts_shows_its_card(package: Path, capsys) -> None:
    (package / "claims.json").unlink()
    record = shown(capsys, "kites")
    assert record["error"] is None and {claim["verdict"] for claim in record["claims"]} == {"not measured"}


def test_a_damaged_card_is_an_error(package: Path, capsys) -> None:
    (package / "paper.toml").write_text("id = ")
    assert main(["info", "kites"]) == 2
    assert "cannot be read as TOML" in capsys.readouterr().err
