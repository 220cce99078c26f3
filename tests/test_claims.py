"""Claims: the verdict, the numbers and the words printed beside the paper's; a check that fails is a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.papers.card import Claim, Paper
from axon_core.papers.claims import NotRun, Outcome, check_claim

CHECKS = """
    import time
    from axon_core.papers import NotRun, Outcome
    from axon_core.errors import DataError

    def holds(): return Outcome(True, "largest difference 1e-16")
    def direction(): return Outcome("direction", "gain", (1.0, 2.0, 3.0))
    def one(): return Outcome(True, "gain", [2.5])
    def fails(): return Outcome(False, "gain", [-1, -2])
    def raises(): raise ZeroDivisionError("division by zero")
    def exits(): raise SystemExit(1)
    def data(): raise DataError("there is no data set")
    def skips(): raise NotRun("needs AXON_DATA_DIR")
    def wrong(): return True
    def slow():
        time.sleep(0.05)
        return Outcome(True, "done")
    def draws(): return Outcome(True, "drawn", plot=lambda axes: axes.plot([1, 2]))
    def interrupts(): raise KeyboardInterrupt
"""
CARD = """
id = "kites"
title = "On Kites"
authors = ["A. Wind"]
year = 2020
arxiv = "2001.00001"
summary = "Kites fly."
"""


def claim(function: str, scale: str = "exact", budget_s: float = 60) -> Claim:
    return Claim(
        id=function.lower(),
        where="Section 2",
        text="A kite flies.",
        paper="2.5",
        check=f"axon_kites.claims:{function}",
        scale=scale,
        budget_s=budget_s,
    )


@pytest.fixture
def paper(site) -> Paper:
    site.install("axon-kites", {"axon.v1.paper": {"kites": "axon_kites"}}, {
        "axon_kites/__init__.py": "",
        "axon_kites/claims.py": CHECKS,
        "axon_kites/paper.toml": CARD,
    })  # fmt: skip
    return Paper(
        id="kites", title="On Kites", authors=("A. Wind",), year=2020, arxiv="2001.00001", summary="Kites fly."
    )


@pytest.mark.parametrize(
    ("function", "scale", "verdict", "measured"),
    [
        ("holds", "exact", "reproduced", "largest difference 1e-16"),
        ("holds", "scaled", "direction holds", "largest difference 1e-16 (scaled)"),
        ("direction", "full", "direction holds", "gain 2 ± 1 (3 seeds)"),
        ("direction", "scaled", "direction holds", "gain 2 ± 1 (3 seeds) (scaled)"),
        ("one", "full", "reproduced", "gain 2.5 (1 seed)"),
        ("fails", "scaled", "failed", "gain -1.5 ± 0.707 (2 seeds) (scaled)"),
        ("raises", "exact", "failed", "the check raised ZeroDivisionError: division by zero"),
        ("exits", "exact", "failed", "the check raised SystemExit: 1"),
        ("data", "exact", "failed", "there is no data set"),
        ("skips", "exact", "not run", "needs AXON_DATA_DIR"),
        (
            "wrong",
            "exact",
            "failed",
            "the check raised TypeError: axon_kites.claims:wrong must return an axon_core.papers.claims.Outcome, "
            "got True",
        ),
        (
            "gone",
            "exact",
            "failed",
            "the check raised AttributeError: module 'axon_kites.claims' has no attribute 'gone'",
        ),
    ],
)
def test_verdict_and_measurement(paper: Paper, function: str, scale: str, verdict: str, measured: str) -> None:
    result = check_claim(paper, claim(function, scale), full=True)
    assert (result.verdict, result.measured, result.scale) == (verdict, measured, scale)
    assert result.reported == "2.5"


def test_a_run_of_full_size_is_asked_for(paper: Paper) -> None:
    result = check_claim(paper, claim("raises", "full"))
    assert (result.verdict, result.values) == ("not run", ())
    assert result.measured == "needs a run of the paper's own size; use --full"


def test_a_check_over_its_budget_is_noted(paper: Paper) -> None:
    result = check_claim(paper, claim("slow", budget_s=0.01))
    assert result.verdict == "reproduced"
    assert result.measured.startswith("done (took 0.") and "its budget is 0.01 s)" in result.measured


def test_ctrl_c_is_no_result(paper: Paper) -> None:
    with pytest.raises(KeyboardInterrupt):
        check_claim(paper, claim("interrupts"))


def test_a_figure_is_written(paper: Paper, tmp_path: Path) -> None:
    result = check_claim(paper, claim("draws"), out=tmp_path / "out")
    assert result.figure == "kites-draws.png"
    assert (tmp_path / "out" / "kites-draws.png").read_bytes().startswith(b"\x89PNG")


def test_the_reason_not_to_run_is_a_sentence() -> None:
    assert str(NotRun("needs a GPU")) == "needs a GPU"
    assert Outcome(True, "x").values == ()


def test_each_value_has_a_seed_or_none_has() -> None:
    assert Outcome(True, "x", (1.0, 2.0), (7, 8)).seeds == (7, 8)
    with pytest.raises(ValueError, match="an outcome has a seed for each value or none, got 1 for 2"):
        Outcome(True, "x", (1.0, 2.0), (7,))


def reproduce(site, functions: str, *arguments: str, scale: str = "exact") -> int:
    text = CARD + "".join(
        f'[[claim]]\nid = "{f}"\nwhere = "Section 2"\ntext = "A kite flies."\npaper = "27.3"\n'
        f'check = "axon_kites.claims:{f}"\nscale = "{scale}"\nbudget_s = 60\n'
        for f in functions.split()
    )
    (site.folder / "axon_kites" / "paper.toml").write_text(text)
    return main(["reproduce", *arguments])


def test_axon_reproduce_prints_and_writes(paper: Paper, site, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert reproduce(site, "holds direction", "kites", "--out", str(out), scale="scaled") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "27.3" in lines[1] and "largest difference 1e-16 (scaled)" in lines[1] and "direction holds" in lines[1]
    assert lines[-2:] == ["2 direction holds", f"Written to {out / 'claims.json'}"]
    assert len(json.loads((out / "claims.json").read_text())["claims"]) == 2


def test_axon_reproduce_fails_where_a_claim_does(paper: Paper, site, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert reproduce(site, "raises holds", "kites", "--out", out, "--json") == 1
    assert [r["verdict"] for r in json.loads(capsys.readouterr().out)] == ["failed", "reproduced"]


def test_axon_reproduce_all(paper: Paper, site, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("AXON_PLUGINS", "axon-kites,axon-bad")
    site.install("axon-bad", {"axon.v1.paper": {"bad": "axon_bad"}}, {"axon_bad/__init__.py": ""})
    assert reproduce(site, "holds", "--all", "--out", str(tmp_path)) == 1
    out, err = capsys.readouterr()
    assert "1 reproduced" in out
    assert "Error: the paper 'bad' of axon-bad 1.0 has no card" in err


def test_what_was_measured_before_ctrl_c_is_kept(paper: Paper, site, tmp_path: Path) -> None:
    assert reproduce(site, "holds interrupts fails", "kites", "--out", str(tmp_path)) == 130
    assert [r["claim"] for r in json.loads((tmp_path / "claims.json").read_text())["claims"]] == ["holds"]


@pytest.mark.parametrize("arguments", [[], ["kites", "--all"]])
def test_axon_reproduce_needs_one_paper_or_all(paper: Paper, arguments: list[str], capsys) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert "give either one paper or --all" in capsys.readouterr().err
