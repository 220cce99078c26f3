"""`axon reproduce --diff`: what counts as worse, better, changed and new, and that a planted regression is caught."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.papers.claims import ClaimResult
from axon_core.papers.claims_diff import compare_claims, compare_surroundings
from axon_core.papers.claims_file import ClaimsFile, write_claims
from axon_core.papers.taking_part import MeasuredWith

USED = MeasuredWith(
    python="3.11.7",
    torch="2.13.0",
    platform="Linux x86_64",
    processor="abacus",
    cores=2,
    packages={"axon-kites": "1.0"},
)
PLUGIN = """
    import torch
    from axon_core.papers import Outcome
    from axon_kites.lift import lift

    def linear() -> Outcome:
        x = torch.linspace(0, 1, 9, dtype=torch.float64)
        worst = (lift(2 * x) - 2 * lift(x)).abs().max().item()
        return Outcome(worst < 1e-12, f"largest difference {worst:.1e}")

    def grows() -> Outcome:
        gains = [float(lift(torch.tensor(1.0 + seed))) for seed in (0, 1, 2)]
        return Outcome("direction" if min(gains) > 0 else False, "lift", gains, (0, 1, 2))
"""
LIFT = "def lift(wind):\n    return 0.5 * wind\n"
CARD = """
    id = "kites"
    title = "On Kites"
    authors = ["A. Wind"]
    year = 2020
    arxiv = "2001.00001"
    summary = "Kites fly."

    [[claim]]
    id = "linear"
    where = "Eq. 1"
    text = "Lift is linear."
    paper = "exact"
    check = "axon_kites.claims:linear"
    scale = "exact"
    tolerance = 1e-12
    budget_s = 60

    [[claim]]
    id = "grows"
    where = "Table 1"
    text = "Wind lifts."
    paper = "more lift"
    check = "axon_kites.claims:grows"
    scale = "scaled"
    budget_s = 60
"""


def result(name: str = "lift", **changes: object) -> ClaimResult:
    facts = {
        "paper": "kites",
        "claim": name,
        "where": "Section 2",
        "text": "A kite flies.",
        "scale": "exact",
        "tolerance": 1e-6,
        "reported": "exact",
        "measured": "1e-9",
        "verdict": "reproduced",
        "seconds": 1.0,
        "budget_s": 5.0,
    }
    return ClaimResult.model_validate({**facts, **changes})


def file(*results: ClaimResult, used: MeasuredWith = USED) -> ClaimsFile:
    contents = ClaimsFile(date=datetime(2026, 1, 1, tzinfo=UTC))
    for one in results:
        contents = contents.adding(one, "axon-kites", used)
    return contents


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        ("reproduced", "failed", "worse"),
        ("reproduced", "direction holds", "worse"),
        ("reproduced", "not run", "worse"),
        ("direction holds", "failed", "worse"),
        ("failed", "not run", "worse"),
        ("not run", "failed", "worse"),
        ("not run", "direction holds", "better"),
        ("failed", "direction holds", "better"),
        ("direction holds", "reproduced", "better"),
    ],
)
def test_a_verdict_becomes_worse_or_better(old: str, new: str, effect: str) -> None:
    (change,) = compare_claims(file(result(verdict=old)), file(result(verdict=new, measured="0.1")))
    assert (change.effect, change.what, change.old, change.new) == (effect, "verdict", old, f"{new}: 0.1")


def test_equal_files_differ_in_nothing() -> None:
    one = file(result(), result("drag", values=(1.0, 2.0)))
    assert compare_claims(one, one) == compare_surroundings(one, one) == []


def test_a_claim_that_vanishes_is_worse_and_a_new_one_is_new() -> None:
    changes = compare_claims(file(result("lift")), file(result("drag", verdict="failed")))
    assert [(c.effect, c.claim, c.old, c.new) for c in changes] == [
        ("worse", "lift", "reproduced", "vanished"),
        ("new", "drag", "", "failed"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ((1.0, 3.0), (3.9, 5.9), True),  # means 2.9 apart, deviations √2 each
        ((1.0, 3.0), (3.8, 5.8), False),
        ((1.0,), (1.0,), False),
        ((1.0,), (1.1,), True),
        ((1.0, None), (1.0, None), False),
        ((1.0, 2.0), (1.0, None), True),
        ((), (1.0,), True),
        ((), (), False),
    ],
)
def test_a_measurement_changes_beyond_both_spreads(old: tuple, new: tuple, moved: bool) -> None:
    before, after = (file(result(values=values, measured=str(values))) for values in (old, new))
    assert [(c.effect, c.what) for c in compare_claims(before, after)] == [("changed", "measured")] * moved


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [(1e-6, 1e-3, "worse"), (1e-3, 1e-6, "changed"), (None, 1e-6, "changed"), ("a third", "a half", "changed")],
)
def test_a_larger_tolerance_is_worse(old: object, new: object, effect: str) -> None:
    (change,) = compare_claims(file(result(tolerance=old)), file(result(tolerance=new)))
    assert (change.effect, change.what) == (effect, "tolerance")


def test_another_statement_or_scale_is_a_change() -> None:
    changes = compare_claims(file(result()), file(result(text="It falls.", scale="scaled")))
    assert [(c.effect, c.old, c.new) for c in changes] == [
        ("changed", "A kite flies.", "It falls."),
        ("changed", "exact", "scaled"),
    ]


def test_other_versions_and_machines_are_listed() -> None:
    other = USED.model_copy(update={"python": "3.12.1", "packages": {"axon-kites": "1.1", "numpy": "2.0"}})
    assert compare_surroundings(file(result()), file(result(), used=other)) == [
        ("python", "3.11.7", "3.12.1"),
        ("axon-kites", "1.0", "1.1"),
        ("numpy", "none", "2.0"),
    ]


def test_a_planted_regression_is_caught(site, tmp_path: Path, capsys) -> None:
    """The part of a plugin loses its linearity, and grows much faster: the exact claim fails, the other moves."""
    site.install("axon-kites", {"axon.v1.paper": {"kites": "axon_kites"}}, {
        "axon_kites/__init__.py": "",
        "axon_kites/lift.py": LIFT,
        "axon_kites/claims.py": PLUGIN,
        "axon_kites/paper.toml": CARD,
    })  # fmt: skip
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert main(["reproduce", "kites", "--out", str(old)]) == 0
    assert main(["reproduce", "--diff", str(old), str(old)]) == 0
    part = __import__("axon_kites.lift", fromlist=["lift"])
    part.__dict__["lift"] = __import__("axon_kites.claims", fromlist=["lift"]).lift = lambda wind: 9 + 0.5 * wind**2
    assert main(["reproduce", "kites", "--out", str(new)]) == 1
    capsys.readouterr()

    assert main(["reproduce", "--diff", str(old), str(new)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Worse:\n") and "kites/linear" in out.split("Changed:")[0]
    assert "kites/grows" in out.split("Changed:")[1]
    assert out.endswith("2 claims before, 2 now: 1 worse, 0 better, 1 changed, 0 new.\n")
    assert main(["reproduce", "--diff", str(old), str(new), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["worse"] and [c["effect"] for c in report["changes"]] == ["worse", "changed"]
    assert main(["reproduce", "--diff", str(new), str(old)]) == 0
    assert "Better:" in capsys.readouterr().out


def test_a_file_of_another_kind_gets_one_message(tmp_path: Path, capsys) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_claims(good, file(result()))
    bad.write_text('{"kind": "axon claims", "format": 99}')
    for arguments in ((good, bad), (bad, good), (good, tmp_path / "none.json")):
        assert main(["reproduce", "--diff", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("Error")) == ("", 1) and "Traceback" not in err


@pytest.mark.parametrize(
    "more", [["kites"], ["--all"], ["--full"], ["--again"], ["--within", "9"], ["--out", "x.json"]]
)
def test_it_runs_nothing_else(more: list[str], capsys) -> None:
    assert main(["reproduce", "--diff", "a.json", "b.json", *more]) == 2
    assert "--diff compares two files and runs nothing" in capsys.readouterr().err


def test_texts_of_a_file_do_not_control_the_terminal(tmp_path: Path, capsys) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_claims(old, file(result()))
    write_claims(new, file(result(verdict="failed", measured="\x1b[2J")))
    assert main(["reproduce", "--diff", str(old), str(new)]) == 1
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and "\\x1b[2J" in out
