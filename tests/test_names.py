"""One name, one thing: a class or function of one file is called like none of another, in core and plugins together."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "axon_core", *sorted(ROOT.glob("plugins/axon-*/axon_*"))]

BY_PROTOCOL = {
    "command": "of the command line: `axon_core.cli.app` and entry points look for it",
    "Curves": "the hook of a paper that draws what its trainer measures; an entry point names it",
    "Linear": "a layer, and the noise schedule `linear`, which is looked up by key",
}
"""Names that stand in several files, by the reason."""


def checks_or_claims(file: Path) -> bool:
    """Whether a file's functions are named by what they check: of the conformance kit's suites, or a card's claims."""
    return file.parent.name == "testing" or file.stem.endswith("claims")


def public(file: Path) -> Iterator[str]:
    """The classes, functions and type aliases that a file defines at its top, without those that are private."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            case ast.FunctionDef(name=name) if not checks_or_claims(file):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) if name[0].isupper() and not name.isupper():
                yield name
            case _:
                pass


def places(files: list[Path]) -> dict[str, list[str]]:
    """The files of each name that is defined in more than one."""
    found = defaultdict[str, set[str]](set)
    for file in files:
        for name in public(file):
            if not name.startswith("_") and len(name) > 1:
                found[name].add(str(file))
    return {name: sorted(files) for name, files in found.items() if len(files) > 1}


def test_no_two_things_have_one_name() -> None:
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    twice = places(files)
    assert not {name: files for name, files in twice.items() if name not in BY_PROTOCOL}
    assert twice.keys() == BY_PROTOCOL.keys()  # and no reason is left over


def test_a_second_thing_of_a_name_is_found(tmp_path: Path) -> None:
    for name, text in {
        "a": "class State: ...\n_X = 1\nclass _Own: ...\n",
        "b": "def State(): ...\nclass _Own: ...\nT = int\n",
        "c": "T = str\nclass Outer:\n    class State: ...\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert places([*tmp_path.iterdir()]) == {"State": [str(tmp_path / "a.py"), str(tmp_path / "b.py")]}
