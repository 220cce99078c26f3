"""The report of a comparison: what its files and its text hold, and that nothing in them is taken for markup."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from axon_core import CheckpointError, ConfigError, DataError
from axon_lab.compare.conclusions import conclude
from axon_lab.compare.report import read_comparison, write_report
from axon_lab.compare.results import Axis, Budget, CellResult, CurvePoint, LeftOut, RecipeComparison, RunResult

VOID = {"meta", "br", "line", "rect", "circle", "path", "polyline"}
EVIL = "<script>alert('x')</script>&\"\x1b[2J"


def result(seed: int, value: float | None, status: str = "done", reason: str = "") -> RunResult:
    end = 1.5 if value is None else value
    points = tuple(CurvePoint(step=step, seconds=step / 10, value=end + 1 / (1 + step)) for step in (0, 10, 20))
    return RunResult.model_validate(
        {
            "seed": seed,
            "status": status,
            "folder": f"runs/{seed}",
            "reason": reason,
            "value": value,
            "curve": points,
            "steps": 20,
            "seconds": 2.0,
            "tokens_per_s": 12345.6,
            "memory_bytes": 3 << 20,
        }
    )


def grid(
    first: tuple[str, ...] = ("MHA", "GQA"), second: tuple[str, ...] = ("rms", "layer"), **fields
) -> RecipeComparison:
    """A grid in which the last choice does not fit and one run of the third diverged."""
    cells = [
        CellResult(
            values=(a, b),
            parameters=607872,
            flops=1.2345e15,
            cache_bytes_per_token=2048,
            runs=tuple(
                result(seed, 1.3 + 0.1 * i + 0.01 * seed * (1 + i) + 0.002 * j)
                if (i, j, seed) != (1, 0, 2)
                else result(seed, None, "failed", "diverged: the loss is nan at step 20")
                for seed in (0, 1, 2)
            ),
        )
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
    last = cells.pop()
    return RecipeComparison(
        recipe="tiny",
        axes=(Axis(path="model.attention.type", values=first), Axis(path="model.norm.type", values=second)),
        seeds=(0, 1, 2),
        overrides=("model.dim=32",),
        budget=Budget(unit="steps", amount=20),
        cells=tuple(cells),
        left_out=(LeftOut(values=last.values, reason="the norm has no bias"),),
        versions={"torch": "2.13.0"},
        hardware="2 cores",
        **fields,
    )


class Balanced(HTMLParser):
    """Reads a page, checks that its elements nest, and keeps their names and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_read_back_and_made_again_the_same(tmp_path: Path):
    comparison = grid()
    text = write_report(comparison, tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert first.keys() == {"compare.json", "compare.csv", "compare.html"}
    assert read_comparison(tmp_path) == comparison
    assert write_report(read_comparison(tmp_path), tmp_path) == text
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    stored = json.loads(first["compare.json"])
    assert stored["conclusions"] == json.loads(conclude(comparison).model_dump_json())


def test_the_text_answers_first_then_says_what_is_missing_then_shows_the_table(tmp_path: Path):
    text = write_report(grid(), tmp_path)
    places = [
        text.index(part)
        for part in (
            "loss in nats on the held-out part, lower is better; 3 seeds (0, 1, 2), 20 steps for each run.",
            "differences can be claimed.",
            "model.attention.type, averaged over the other axes:",
            "GQA − MHA: +0.",
            "Each cell minus MHA · rms:",
            "(MHA · layer) − (MHA · rms): +0.0020 nats in each pair (3 pairs; equal differences give no interval)",
            "GQA · rms, seed 2, failed: diverged: the loss is nan at step 20",
            "GQA · layer: the norm has no bias",
            "model.attention.type  model.norm.type  loss, nats",
        )
    ]
    assert places == sorted(places)
    (row,) = [line for line in text.splitlines() if line.startswith("MHA                   rms ")]
    assert "3 done" in row and "607,872" in row and "1.23 × 10¹⁵" in row and "3 MiB" in row and "12,346" in row
    assert "decode" not in text  # no run measured it
    assert "left out" in text.splitlines()[-1]


def test_higher_may_be_better(tmp_path: Path):
    assert "higher is better" in write_report(grid(higher_is_better=True, metric="accuracy", unit=""), tmp_path)
    assert "higher: better →" in (tmp_path / "compare.html").read_text("utf-8")


def test_the_csv_has_a_row_for_each_run_with_numbers_that_read_back(tmp_path: Path):
    comparison = grid(first=("=HYPERLINK(1)", "-1"))
    write_report(comparison, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text("utf-8"))))
    runs = [run for cell in comparison.cells for run in cell.runs]
    assert len(rows) == len(runs) == 9
    assert [float(row["value"]) if row["value"] else None for row in rows] == [run.value for run in runs]
    assert [int(row["seed"]) for row in rows] == [run.seed for run in runs]
    assert {row["model.attention.type"] for row in rows} == {"'=HYPERLINK(1)", "-1"}  # text for a spreadsheet
    assert [row["reason"] for row in rows if row["status"] == "failed"] == ["diverged: the loss is nan at step 20"]


def test_the_page_needs_nothing_else_and_shows_everything(tmp_path: Path):
    text = write_report(grid(), tmp_path)
    page = (tmp_path / "compare.html").read_text("utf-8")
    found = Balanced(page)
    assert not {"script", "link", "img", "iframe", "object"} & {*found.tags}
    assert not re.search(r"https?:|url\(|@import|\son\w+=", page)
    order = [found.text.index(part) for part in ("differences can be claimed", "Not finished", "All cells", "Design")]
    assert order == sorted(order)
    for answer in re.findall(r"^.* − .*: .*claimed\.$", text, re.MULTILINE):
        assert answer in found.text
    for fact in (
        "the norm has no bias",
        "diverged: the loss is nan at step 20",
        "model.dim=32",
        "2 cores",
        "torch 2.13.0",
    ):
        assert fact in found.text
    heat = re.search(r'<table class="heat">.*?</table>', page, re.DOTALL)
    assert heat and heat[0].count("<b>") == 3 and "left out" in heat[0]
    for cell in conclude(grid()).cells:
        assert f"<b>{cell.mean:.4f}</b>" in heat[0]
    assert page.count("<polyline") == 9 + 3  # each run, and a mean for each cell
    assert page.count('<svg class="row"') == 1 + 2 + 2  # the scale, two axes, two cells


@pytest.mark.parametrize("place", ["value", "path", "reason", "recipe", "override", "version", "unit", "hardware"])
def test_what_comes_from_outside_is_shown_as_text(place: str, tmp_path: Path):
    comparison = grid(first=("MHA", EVIL)) if place == "value" else grid()
    axes = (Axis(path=EVIL, values=comparison.axes[0].values), comparison.axes[1])
    changes = {
        "value": {},
        "path": {"axes": axes},
        "reason": {"left_out": (LeftOut(values=comparison.left_out[0].values, reason=EVIL),)},
        "recipe": {"recipe": EVIL},
        "override": {"overrides": (EVIL,)},
        "version": {"versions": {EVIL: EVIL}},
        "unit": {"unit": EVIL},
        "hardware": {"hardware": EVIL},
    }
    comparison = comparison.model_copy(update=changes[place])
    text = write_report(comparison, tmp_path)
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert "script" not in Balanced(page).tags
    assert html.escape("<script>alert('x')</script>&\"") in page
    assert "\x1b" not in page and "\x1b" not in text


def test_a_comparison_that_has_not_begun_or_has_no_cell_can_be_shown(tmp_path: Path):
    waiting = tuple(RunResult(seed=seed, status="waiting", folder="") for seed in (0, 1))
    cells = tuple(CellResult(values=(name,), runs=waiting) for name in ("MHA", "GQA"))
    axes = (Axis(path="model.attention.type", values=("MHA", "GQA")),)
    comparison = RecipeComparison(recipe="tiny", axes=axes, seeds=(0, 1), cells=cells)
    text = write_report(comparison, tmp_path)
    assert "So far: no difference can be claimed." in text and "4 runs still to be made." in text
    assert "GQA − MHA: no pair of finished runs (0 pairs, 2 left out)" in text
    text = write_report(comparison.model_copy(update={"cells": ()}), tmp_path)
    assert "There is nothing to compare: fewer than two cells fit the recipe." in text
    Balanced((tmp_path / "compare.html").read_text("utf-8"))


def test_many_cells_have_a_plot_for_each_value_and_a_short_text(tmp_path: Path):
    comparison = grid(first=("MHA", "GQA", "MQA", "SWA"), second=tuple(f"norm{i}" for i in range(7)))
    text = write_report(comparison, tmp_path)
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert page.count('<svg class="plot"') == 4
    assert page.count('class="swatch"') == 7
    assert "others: no difference can be claimed (compare.html)." in text
    Balanced(page)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, DataError, "holds no comparison: compare.json is missing; give a folder of axon compare"),
        ("{", DataError, "cannot be read"),
        ("[" * 100_000, DataError, "cannot be read"),
        ("{}", ConfigError, "has no comparison"),
        ("[]", ConfigError, "must be a table"),
        ('{"comparison": {"recipe": 5}}', ConfigError, "recipe: must"),
    ],
)
def test_what_is_not_a_comparison_is_refused(content: str | None, error: type, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    with pytest.raises(error, match=message):
        read_comparison(tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_report(grid(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="free some space"):
        write_report(grid(higher_is_better=True), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
