"""Fixtures of the lab's tests: a recipe that is over in a moment, distributions outside the tree, `axon compare`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest

from axon_core.cli import main
from axon_core.registry import refresh
from axon_lab.compare.results import RecipeComparison

RECIPE = """
[data]
path = {text}
tokenizer = "char"
held_out = 0.1

[model]
type = "xllama"
context = 16
dim = 16
n_layers = 1
n_heads = 2
attention = {{ type = "MHA" }}

[trainer]
type = "causal_lm"
steps = 4
batch_size = 4
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of four steps."""
    folder = tmp_path_factory.mktemp("recipe")
    text, recipe = folder / "text.txt", folder / "tiny.toml"
    text.write_text("\n".join(topics[name] for name in sorted(topics))[:8000], encoding="utf-8")
    recipe.write_text(RECIPE.format(text=json.dumps(str(text))), encoding="utf-8")
    return recipe


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `axon compare` in this process, and returns its exit code."""
    if find_spec("axon_lab.compare.report") is None:
        double = ModuleType("axon_lab.compare.report")

        def write_report(comparison: RecipeComparison, out: Path) -> str:
            (out / "compare.json").write_text(comparison.model_dump_json(), "utf-8")
            return ""

        vars(double)["write_report"] = write_report
        monkeypatch.setitem(sys.modules, double.__name__, double)
    return lambda *words: main(["compare", *map(str, words)])


class Outside:
    """A folder of distributions outside the tree, which this process and those that it starts find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, entry_points: Mapping[str, Mapping[str, str]], module: str, code: str) -> None:
        """Install a distribution with one module, laid out as pip does."""
        info = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        groups = [
            f"[axon.v1.{group}]\n" + "".join(f"{key} = {target}\n" for key, target in entries.items())
            for group, entries in entry_points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups), "utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n\nText.\n", "utf-8")
        (info / "RECORD").write_text(f"{module}.py,,\n", "utf-8")
        (self.folder / f"{module}.py").write_text(code, "utf-8")
        refresh()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """A folder that is gone from the path after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield Outside(folder)
    monkeypatch.undo()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    refresh()
