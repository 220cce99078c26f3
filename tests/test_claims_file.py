"""A file of claims: what it records, what a second call keeps, and that nothing is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.errors import CheckpointError, DataError
from axon_core.papers import measuring
from axon_core.papers.card import find_card
from axon_core.papers.claims_file import FORMAT, ClaimsFile, read_claims, write_claims

CHECKS = """
    import math
    from pathlib import Path
    from axon_core.papers import NotRun, Outcome

    CALLS = Path(__file__).with_name("calls")

    def called(name):
        with CALLS.open("a") as file:
            file.write(name + "\\n")

    def holds():
        called("holds")
        return Outcome(True, "largest difference 1e-16")

    def seeds():
        called("seeds")
        return Outcome("direction", "gain", (1.0, 2.0, 3.0), (4, 5, 6))

    def odd():
        return Outcome(False, "gain \\ud800", (math.nan, 1e300, 2.0))

    def skips():
        called("skips")
        raise NotRun("needs a kite")

    def draws(): return Outcome(True, "drawn", plot=lambda axes: axes.plot([1, 2]))

    def interrupts():
        if not CALLS.with_name("calm").exists():
            raise KeyboardInterrupt
        return Outcome(True, "calm")
"""
CARD = (
    'id = "{id}"\ntitle = "On Kites"\nauthors = ["A. Wind"]\nyear = 2020\narxiv = "2001.00001"\nsummary = "They fly."\n'
)
CLAIM = """
[[claim]]
id = "{id}"
where = "Section 2"
text = "A kite flies."
paper = "2.5"
check = "axon_kites.claims:{id}"
scale = "exact"
tolerance = 0.5
budget_s = 60
"""


class Kites:
    """An installed paper whose claims a test chooses, and a file for their results."""

    def __init__(self, site, folder: Path) -> None:
        self.site, self.file = site, folder / "claims.json"
        self.card = site.folder / "axon_kites" / "paper.toml"
        self.calls_file = site.folder / "axon_kites" / "calls"
        site.install("axon-kites", {"axon.v1.paper": {"kites": "axon_kites"}}, {
            "axon_kites/__init__.py": "",
            "axon_kites/claims.py": CHECKS,
        })  # fmt: skip

    def state(self, claims: str, more: str = "") -> None:
        self.card.write_text(CARD.format(id="kites") + more + "".join(CLAIM.format(id=c) for c in claims.split()))

    def reproduce(self, claims: str, *options: str, paper: str = "kites") -> int:
        self.state(claims)
        return main(["reproduce", paper, "--out", str(self.file), *options])

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().split() if self.calls_file.exists() else []

    @property
    def written(self) -> dict:
        return json.loads(self.file.read_text("utf-8"))

    def ids(self) -> list[str]:
        return [claim["claim"] for claim in self.written["claims"]]


@pytest.fixture
def kites(site, tmp_path: Path) -> Kites:
    return Kites(site, tmp_path)


def test_it_records_the_claim_and_what_it_was_measured_with(kites: Kites) -> None:
    assert kites.reproduce("seeds") == 0
    assert kites.written["format"] == FORMAT
    (claim,) = kites.written["claims"]
    expected = {
        "paper": "kites",
        "claim": "seeds",
        "where": "Section 2",
        "text": "A kite flies.",
        "scale": "exact",
        "tolerance": 0.5,
        "reported": "2.5",
        "values": [1.0, 2.0, 3.0],
        "seeds": [4, 5, 6],
        "verdict": "direction holds",
        "budget_s": 60.0,
        "distribution": "axon-kites",
        "environment": 0,
    }
    assert {name: claim[name] for name in expected} == expected
    (used,) = kites.written["environments"]
    assert {"axon-core", "axon-kites", "torch", "pydantic", "typing-extensions"} <= used["packages"].keys()
    assert used["packages"]["axon-kites"] == "1.0" and used["packages"]["torch"] == used["torch"]
    assert used["cores"] >= 1 and used["processor"] and used["python"].startswith("3.")


def test_a_second_call_keeps_what_was_measured_and_tries_again_what_was_not(kites: Kites, capsys) -> None:
    assert kites.reproduce("holds skips") == 0
    first = kites.written["claims"][0]
    assert kites.reproduce("holds skips seeds") == 0
    assert kites.calls == ["holds", "skips", "skips", "seeds"]
    assert kites.written["claims"][0] == first
    assert "has 1 claim from this machine and these versions" in capsys.readouterr().err
    assert kites.reproduce("holds skips seeds", "--again") == 0
    assert kites.calls[4:] == ["holds", "skips", "seeds"]


@pytest.mark.parametrize("change", ["statement", "tolerance", "version", "machine"])
def test_a_claim_is_measured_again_if_it_or_what_it_needs_is_another(kites: Kites, change: str, monkeypatch) -> None:
    assert kites.reproduce("holds") == 0
    if change == "machine":
        current = measuring.current_machine
        monkeypatch.setattr(
            measuring, "current_machine", lambda found: current(found).model_copy(update={"processor": "abacus"})
        )
    elif change == "version":
        monkeypatch.setattr(measuring, "distributions_of", lambda name: {"axon-kites": "1.1"})
    else:
        old, new = {"statement": ("flies", "falls"), "tolerance": ("0.5", "0.6")}[change]
        kites.card.write_text(kites.card.read_text().replace(f'"A kite {old}' if change == "statement" else old, new))
        kites.card.write_text(kites.card.read_text().replace("text = falls", 'text = "A kite falls'))
    assert main(["reproduce", "kites", "--out", str(kites.file)]) == 0
    assert kites.calls == ["holds", "holds"]
    assert len(kites.written["claims"]) == len(kites.written["environments"]) == 1


def test_a_claim_of_a_larger_budget_is_left_out_and_an_older_result_stays(kites: Kites, monkeypatch) -> None:
    assert kites.reproduce("holds", "--within", "59") == 0
    assert kites.written["claims"][0]["verdict"] == "not run" and kites.calls == []
    assert kites.written["claims"][0]["measured"] == "its budget is 60 s, and --within 59 leaves it out"
    assert kites.reproduce("holds", "--within", "60") == 0
    assert kites.written["claims"][0]["verdict"] == "reproduced" and kites.calls == ["holds"]
    monkeypatch.setattr(measuring, "distributions_of", lambda name: {"axon-kites": "1.1"})
    assert kites.reproduce("holds", "--within", "59", "--again") == 0
    assert kites.written["claims"][0]["verdict"] == "reproduced" and kites.calls == ["holds"]


def test_what_was_measured_before_an_interruption_is_kept_and_continued(kites: Kites) -> None:
    assert kites.reproduce("holds interrupts seeds") == 130
    assert kites.ids() == ["holds"]
    (kites.site.folder / "axon_kites" / "calm").touch()
    assert kites.reproduce("holds interrupts seeds") == 0
    assert (kites.calls, kites.ids()) == (["holds", "seeds"], ["holds", "interrupts", "seeds"])


def test_claims_of_other_papers_stay_and_those_that_a_card_has_no_longer_go(kites: Kites) -> None:
    assert kites.reproduce("holds seeds") == 0
    kites.site.install("axon-balloons", {"axon.v1.paper": {"balloons": "axon_balloons"}}, {
        "axon_balloons/__init__.py": "",
        "axon_balloons/paper.toml": CARD.format(id="balloons") + CLAIM.format(id="holds"),
    })  # fmt: skip
    assert main(["reproduce", "balloons", "--out", str(kites.file)]) == 0
    assert [(c["paper"], c["claim"]) for c in kites.written["claims"]] == [
        ("balloons", "holds"), ("kites", "holds"), ("kites", "seeds"),
    ]  # fmt: skip
    assert kites.reproduce("seeds") == 0
    assert [(c["paper"], c["claim"]) for c in kites.written["claims"]] == [("balloons", "holds"), ("kites", "seeds")]


def test_what_is_to_be_looked_up_is_never_run(kites: Kites, capsys) -> None:
    kites.state("holds", '[[look_up]]\nid = "table"\nwhat = "The main table."\n')
    assert main(["reproduce", "kites", "--out", str(kites.file)]) == 0
    out = capsys.readouterr().out
    assert "1 reproduced, 1 not run" in out
    (row,) = [line for line in out.splitlines() if line.startswith("kites/table")]
    assert row.count("to be looked up") == 3 and "not run" in row


def test_numbers_and_texts_that_json_cannot_hold(kites: Kites) -> None:
    assert kites.reproduce("odd") == 1
    (claim,) = read_claims(kites.file).claims
    assert claim.values == (None, None, 2.0)
    assert claim.measured.startswith("gain \\ud800") and math.isfinite(claim.seconds)


def test_figures_lie_in_a_folder_beside_the_file(kites: Kites) -> None:
    assert kites.reproduce("draws") == 0
    assert kites.written["claims"][0]["figure"] == "claims/kites-draws.png"
    assert (kites.file.parent / "claims" / "kites-draws.png").read_bytes().startswith(b"\x89PNG")


def test_another_file_is_not_overwritten(kites: Kites, capsys) -> None:
    kites.file.write_text('{"name": "kites"}')
    assert kites.reproduce("holds") == 1
    assert 'is no file of claims: it has no entry "kind": "axon claims"' in capsys.readouterr().err
    assert (kites.file.read_text(), kites.calls) == ('{"name": "kites"}', [])
    text = kites.file.with_suffix(".txt")
    text.write_text("mine")
    assert main(["reproduce", "kites", "--out", str(text)]) == 2
    assert "--out must be a folder, or a file whose name ends in .json" in capsys.readouterr().err
    assert main(["reproduce", "kites", "--out", str(kites.file.parent / "folder"), "--again"]) == 2


def test_a_full_disk_loses_nothing(kites: Kites, monkeypatch) -> None:
    assert kites.reproduce("holds") == 0
    before = kites.file.read_text()

    def full(*_) -> None:
        raise CheckpointError("cannot write it: No space left on device; free some space.")

    monkeypatch.setattr(measuring, "write_claims", full)
    assert kites.reproduce("holds seeds") == 1
    assert kites.file.read_text() == before


def test_a_file_of_two_versions_says_which_claim_has_which(kites: Kites) -> None:
    assert kites.reproduce("holds seeds") == 0
    first = read_claims(kites.file)
    old = first.environments[0]
    new = old.model_copy(update={"packages": {**old.packages, "axon-kites": "1.1"}})
    both = first.adding(first.claims[0], "axon-kites", new)
    assert [both.measured_with(claim).packages["axon-kites"] for claim in both.claims] == ["1.1", "1.0"]
    assert both.adding(first.claims[0], "axon-kites", old) == first.model_copy(update={"date": both.date})
    joined = both.adding(first.claims[0], "axon-kites", new.model_copy(update={"packages": {"another": "2"}}))
    assert len(joined.environments) == 1 and joined.environments[0].packages["another"] == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "it is not JSON"),
        ("[]", 'no entry "kind"'),
        ("\xff", "it is not JSON"),
        ('{{"kind": "axon claims", "format": {later}}}', "has format {later} of a later Axon"),
        ('{{"kind": "axon claims", "format": 1}}', "is no valid file of claims: date: this field is required"),
        ('{{"kind": "axon claims", "format": 1, "date": "2026-01-01T00:00:00Z", "more": 1}}', "unknown field 'more'"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_file_of_another_kind_is_named_in_words(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text.format(later=FORMAT + 1) if "{{" in text else text, "latin-1")
    with pytest.raises(DataError) as caught:
        read_claims(file)
    assert str(file) in str(caught.value) and message.format(later=FORMAT + 1) in str(caught.value)


def test_a_file_that_is_missing_or_too_large(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file or directory"):
        read_claims(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        read_claims(tmp_path)
    monkeypatch.setattr("axon_core.papers.claims_file.LARGEST_FILE", 10)
    write_claims(tmp_path / "x.json", ClaimsFile.empty())
    with pytest.raises(DataError, match="at most 10 bytes, and this one has more"):
        read_claims(tmp_path / "x.json")


def test_a_claim_stands_once_and_in_an_environment_of_the_file(kites: Kites) -> None:
    assert kites.reproduce("holds") == 0
    written = kites.written
    for change, message in (
        ({"claims": written["claims"] * 2}, "each claim may be there once, but kites/holds is there more than once"),
        ({"environments": []}, "the environment of the claim 'holds' is not among the 0"),
    ):
        kites.file.write_text(json.dumps({**written, **change}))
        with pytest.raises(DataError, match=message):
            read_claims(kites.file)


def test_the_card_of_the_test_is_read(kites: Kites) -> None:
    kites.state("holds")
    assert find_card("kites").paper.claim[0].tolerance == 0.5
