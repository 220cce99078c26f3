"""Curves of a run's numbers: which panels there are, and what is in them."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from axon_core.training.callbacks.curves import draw_curves
from axon_core.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PANELS = {"first": ("a", "b"), "nothing": ("c",), "second": ("d",)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    lines = [(1, "train", "a", 3.0), (2, "train", "a", 2.0), (2, "held_out", "a", 2.5), (2, "held_out", "d", 7.0)]
    fields = ("step", "split", "name", "value")
    text = "".join(json.dumps(dict(zip(fields, line, strict=True))) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return RunFolder(tmp_path, {})


def test_each_panel_has_its_curves_and_empty_ones_are_left_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    figures = list[Figure]()
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    draw_curves(run, PANELS, "x.png")
    (figure,) = figures
    found = {
        axes.get_title(): {str(line.get_label()): (*line.get_xdata(), *line.get_ydata()) for line in axes.lines}
        for axes in figure.axes
    }
    assert found == {
        "first": {"a": (1, 2, 3.0, 2.0), "a, held out": (2, 2.5)},
        "second": {"d, held out": (2, 7.0)},
    }
    for axes in figure.axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())  # there is no half step


def test_a_picture_is_written_even_of_nothing(run: RunFolder):
    for panels in (PANELS, {}):
        draw_curves(run, panels, "x.png")
        assert (run.path / "x.png").read_bytes().startswith(b"\x89PNG")
        (run.path / "x.png").unlink()


def test_without_matplotlib_nothing_is_drawn(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_curves(run, PANELS, "x.png")
    assert not (run.path / "x.png").exists()


def test_matplotlib_is_imported_in_one_place_beside_type_checking():
    def imports(tree: ast.AST) -> bool:
        return any(
            isinstance(node, ast.Import | ast.ImportFrom) and "matplotlib" in ast.unparse(node)
            for node in ast.walk(tree)
        )

    class Unchecked(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    sources = [*ROOT.glob("axon_core/**/*.py"), *ROOT.glob("plugins/*/axon_*/**/*.py")]
    found = [file for file in sources if imports(Unchecked().visit(ast.parse(file.read_text("utf-8"))))]
    assert [file.relative_to(ROOT).as_posix() for file in found] == ["axon_core/registry/optional.py"]
