"""The public API: what each package of the core exports, and that plugins import nothing else."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

import axon_core

ROOT = Path(__file__).parents[1]
PUBLIC = ["axon_core", *sorted(f"axon_core.{path.parent.name}" for path in ROOT.glob("axon_core/*/__init__.py"))]
"""Where plugins may import from."""
MODULES = {"config"}
"""Modules that are public as such: an inner class `Config` derives from `config.Config`."""
USERS = [
    *ROOT.glob("plugins/*/axon_*/**/*.py"),
    *ROOT.glob("tests/out_of_tree/**/*.py"),
    *ROOT.glob("axon_core/papers/scaffold/templates/**/*.py.txt"),
]
"""The sources of plugins: those here, those of the tests, and what `axon new` writes."""


def told(package: ModuleType) -> dict[str, str]:
    """What a package's stub tells type checkers: the module that defines each name."""
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text("utf-8"))
    return {
        alias.asname: statement.module
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_name_resolves_and_type_checkers_are_told_the_same(path: str):
    package = import_module(path)
    names = told(package)
    assert sorted(names) == sorted(package.__all__)
    for name, home in names.items():
        assert getattr(package, name) is getattr(import_module(home), name), name
    assert {*package.__all__} <= set(dir(package))
    with pytest.raises(AttributeError, match=f"module {path!r} has no attribute 'Atention'"):
        package.Atention  # noqa: B018


def test_the_version_is_a_public_name():
    assert axon_core.__version__ == import_module("importlib.metadata").version("axon-core")
    with pytest.raises(AttributeError):
        axon_core.cli.__version__  # noqa: B018


def imports(source: Path) -> dict[str, set[str]]:
    """The names that a file takes from each module of the core."""
    text = source.read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    if source.suffix == ".txt":  # a template: names in it may be placeholders
        lines = [line.strip() for line in text.splitlines()]
        statements = [line for line in lines if line.startswith("from axon_core") and "$" not in line]
        text = "\n".join(statements)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "axon_core":
            found.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            found |= {alias.name: set() for alias in node.names if alias.name.split(".")[0] == "axon_core"}
    return found


@pytest.mark.parametrize("source", USERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_plugins_import_public_names_alone(source: Path):
    for path, names in imports(source).items():
        assert path in PUBLIC
        assert names <= {*import_module(path).__all__, "__version__", *(MODULES if path == "axon_core" else ())}, path


def test_the_documentation_names_public_names_alone():
    """But for docs/architecture.md, which is a map of the files, and logs of what was."""
    found = [ROOT.glob(pattern) for pattern in ("*.md", "changes/*.md", "plugins/*/README.md", "docs/**/*.md")]
    others = ("architecture.md", "CHANGELOG.md", "log.md")
    pages = [page for page in chain(*found) if "_build" not in page.parts and page.name not in others]
    named = {path for page in pages for path in re.findall(r"\baxon_core(?:\.\w+)+(?!/)", page.read_text("utf-8"))}
    assert len(named) > 15
    for path in named - {*PUBLIC}:
        home = max((public for public in PUBLIC if path.startswith(f"{public}.")), key=len)
        assert path.removeprefix(f"{home}.").split(".")[0] in import_module(home).__all__, path


def test_no_public_name_is_hidden_by_a_module_of_its_name():
    for path in PUBLIC:
        folder = Path(import_module(path).__file__).parent
        assert not {*import_module(path).__all__} & {file.stem for file in folder.glob("*")}, path


def test_there_are_at_most_twelve_places_to_import_from():
    assert len(PUBLIC) <= 12
    used = {path for source in USERS for path in imports(source)}
    assert used >= {"axon_core", "axon_core.nn", "axon_core.training"}
