"""The pages of claims: verdicts and dates from the release's file, history over releases, and the badge."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from axon_core.papers.card import Card, Claim, Paper
from axon_core.papers.claims import ClaimResult
from axon_core.papers.claims_file import ClaimsFile, write_claims
from axon_core.papers.taking_part import MeasuredWith
from axon_core.registry.discovery import Entry

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_ext"))

from axon_docs import claims
from axon_docs.badge import GREEN, GREY, RED, YELLOW, badge

SVG = "{http://www.w3.org/2000/svg}"
USED = MeasuredWith(
    python="3.11.7",
    torch="2.13.0",
    platform="Linux x86_64",
    processor="abacus",
    cores=2,
    packages={"axon-kites": "1.0"},
)


def stated(name: str) -> Claim:
    return Claim(
        id=name,
        where="Section 2",
        text=f"It has <b>{name}</b> | $x$.",
        paper="2.5",
        check="axon_kites.claims:lift",
        scale="exact",
        tolerance=1e-6,
        budget_s=5,
    )


def card(*names: str) -> Card:
    paper = Paper(
        id="kites",
        title="On Kites",
        authors=("A. Wind",),
        year=2020,
        arxiv="2001.00001",
        summary="Kites fly.",
        claim=tuple(map(stated, names)),
    )
    return Card(Entry("kites", "axon-kites", "1.0", "axon_kites", "paper"), paper)


def measured(**verdicts: str) -> ClaimsFile:
    contents = ClaimsFile(date=datetime(2026, 1, 1, tzinfo=UTC))
    for name, verdict in verdicts.items():
        claim = stated(name)
        facts = claim.model_dump(include={"where", "text", "scale", "tolerance", "budget_s"})
        result = ClaimResult.model_validate(
            {
                **facts,
                "paper": "kites",
                "claim": name,
                "reported": claim.paper,
                "measured": "*2.4*",
                "verdict": verdict,
                "seconds": 1,
            }
        )
        contents = contents.adding(result, "axon-kites", USED)
    return contents


@pytest.mark.parametrize(
    ("verdicts", "said", "colour"),
    [
        ({"lift": "reproduced", "drag": "reproduced"}, "2/2 reproduced", GREEN),
        ({"lift": "reproduced", "drag": "direction holds"}, "1/2 reproduced, 1 direction", GREEN),
        ({"lift": "reproduced", "drag": "failed"}, "1/2 reproduced, 1 failed", RED),
        ({"lift": "reproduced", "drag": "not run"}, "1/2 reproduced", YELLOW),
        ({"lift": "reproduced"}, "1/2 reproduced", YELLOW),
        ({}, "0/2 reproduced", GREY),
    ],
)
def test_a_badge_counts_only_what_was_reproduced(verdicts: dict[str, str], said: str, colour: str) -> None:
    paper = card("lift", "drag").paper
    assert claims.summary(claims.of_paper(paper, measured(**verdicts))) == (said, colour)
    (svg,) = claims.badges([card("lift", "drag")], {"0.1.0": measured(**verdicts)}).values()
    assert [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")] == ["claims", said]


@pytest.mark.parametrize("text", ['<script>alert("1")</script>', "a & b", 'x" onload="y', "\x1b[2J\x00", "αβ", ""])
def test_a_badge_is_svg_whatever_it_says(text: str) -> None:
    root = ElementTree.fromstring(badge(text, text, GREEN))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "rect", "g", "text"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    shown = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert shown[0] == shown[1] and (shown[0] == text or "\x1b" in text)
    first, second = root.findall(f"{SVG}rect")
    assert float(first.get("width")) + float(second.get("width")) == float(root.get("width"))


def test_white_text_on_its_colours_can_be_read() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in (GREEN, YELLOW, RED, GREY))


def test_a_page_shows_what_was_measured_and_when() -> None:
    page = "\n".join(claims.section(card("lift", "drag"), {"0.1.0": measured(lift="reproduced")}))
    assert "![claims 1/2 reproduced](axon-kites-claims.svg)" in page
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert f"on {today} with axon-kites 1.0, torch 2.13.0, Python 3.11.7 on abacus, 2 cores." in page
    lift, drag = [line for line in page.splitlines() if line.startswith("| It has")]
    assert "&lt;b&gt;lift&lt;/b&gt; \\| \\$x\\$" in lift and "\\*2.4\\* | *reproduced* | exact; 1e-06 |" in lift
    assert drag.endswith("|  | not measured | exact; 1e-06 |")
    assert "### History" not in page


def test_a_claim_that_was_restated_says_so() -> None:
    contents = measured(lift="reproduced")
    old = contents.claims[0].model_copy(update={"text": "It had lift."})
    page = "\n".join(claims.section(card("lift"), {"0.1.0": contents.model_copy(update={"claims": (old,)})}))
    assert "*reproduced* (of an earlier statement)" in page


def test_history_has_every_release_in_order_and_claims_of_the_past(tmp_path: Path) -> None:
    for release, verdicts in {
        "0.10.0": {"lift": "reproduced", "drag": "failed"},
        "0.9.0": {"lift": "failed", "gone": "reproduced"},
        "0.10.0rc1": {"lift": "not run"},
    }.items():
        write_claims(tmp_path / f"{release}.json", measured(**verdicts))
    (tmp_path / "notes.json").write_text("{}")
    found = claims.releases(tmp_path)
    assert list(found) == ["0.9.0", "0.10.0rc1", "0.10.0"]
    page = "\n".join(claims.section(card("lift", "drag"), found))
    assert "| claim | 0.9.0 | 0.10.0rc1 | 0.10.0 |" in page
    for row in (
        "| lift | failed | not run | reproduced |",
        "| drag | – | – | failed |",
        "| gone | reproduced | – | – |",
    ):
        assert row in page


def test_without_a_release_a_page_says_so() -> None:
    page = "\n".join(claims.section(card("lift"), {}))
    assert "none has been measured for a release" in page and ".svg" not in page
    assert claims.section(card(), {}) == []


def test_one_page_has_all_papers() -> None:
    page = claims.page([card("lift", "drag")], {"0.1.0": measured(lift="reproduced", drag="failed")})
    assert "Release 0.1.0, 2 claims: 1 reproduced, 1 failed." in page and "## [On Kites](axon-kites.md)" in page
