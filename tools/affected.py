"""Run the tests a change touches: those of the changed packages and their dependents, and those that look at them.

`python tools/affected.py BASE` compares the working tree with the git revision BASE (`main` by default); `--list`
prints the test files and runs nothing; what follows `--` is pytest's. What depends on what is read from the pyprojects.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CORE = "axon-core"
PAGES = ("commands", "docs", "docstrings", "readme")
"""The tests of pages, and of what makes them."""
WALKS = (
    *(
        "affected",
        "architecture",
        "claims_registry",
        "conformance",
        "curves",
        "imports",
        "initial",
        "install_line",
        "model_parts",
        "names",
        "not_finite",
        "public_api",
    ),
    *PAGES,
)
"""The tests that look at every package without naming it."""
ELSEWHERE = {
    r"docs/.*|.*\.md": PAGES,
    r"tools/.*|\.github/.*": ("affected", "repository"),
    r"changes/.*|\.pre-commit-config\.yaml|.*/pyproject\.toml": ("repository",),
    r"tests/test_.*\.py": ("readme",),
    r"(.*/)?CHANGELOG\.md": ("affected", "architecture"),
}
"""The tests of files outside packages, by path."""


@dataclass(frozen=True)
class Package:
    """A distribution of this repository."""

    name: str
    """Its name, as pip knows it."""
    folder: str
    """Its path relative to the repository; empty for the core."""
    needs: frozenset[str]
    """The distributions of this repository it depends on, extras included."""
    offers: frozenset[str]
    """What tests may call it by beside its name: the keys of its entry points, and its recipes."""

    @property
    def module(self) -> str:
        """The name it is imported by."""
        return self.name.replace("-", "_")


def packages(root: Path) -> dict[str, Package]:
    """Read every pyproject of the repository at `root`."""
    files = [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]
    projects = {file.parent: tomllib.loads(file.read_text("utf-8"))["project"] for file in files}
    names = {str(project["name"]) for project in projects.values()}
    found = {}
    for folder, project in projects.items():
        wanted = [project.get("dependencies", ()), *project.get("optional-dependencies", {}).values()]
        needs = frozenset(re.split(r"[^\w.-]", requirement)[0] for group in wanted for requirement in group) & names
        place = "" if folder == root else folder.relative_to(root).as_posix()
        keys = {str(key) for group in project.get("entry-points", {}).values() for key in group}
        recipes = {recipe.stem for recipe in folder.glob("*/recipes/*.toml")}
        found[str(project["name"])] = Package(str(project["name"]), place, needs, frozenset(keys | recipes))
    return found


def owners(changed: Iterable[str], known: Mapping[str, Package]) -> set[str]:
    """Return the packages whose files changed; what all share (pyproject, constraints, Makefile) is the core's."""
    found = set()
    for path in changed:
        plugin = next((p.name for p in known.values() if p.folder and path.startswith(f"{p.folder}/")), None)
        if plugin:
            found.add(plugin)
        elif path.startswith("axon_core/") or path in {"pyproject.toml", "constraints.txt", "Makefile"}:
            found.add(CORE)
    return found


def with_dependents(changed: set[str], known: Mapping[str, Package]) -> set[str]:
    """Return `changed` and all packages that depend on one of them, directly or not."""
    found = set(changed)
    while more := {p.name for p in known.values() if p.needs & found} - found:
        found |= more
    return found


def tests(changed: Iterable[str], root: Path) -> list[str]:
    """Return the folders and files of tests that the changed files touch, relative to `root`.

    Beside those of the affected packages these are the changed test files, the tests anywhere that name an affected
    package or what it offers, those that look at every package, all of `tests/` where the core or what its tests share
    changed, and those of pages and tools where one of them did.
    """
    changed, known = list(changed), packages(root)
    code = [path for path in changed if not path.endswith(".md")]  # a page of a package concerns no other
    affected = with_dependents(owners(code, known), known)
    if CORE in affected:
        return ["tests", "plugins", "axon_core"]
    folders = {known[name].folder for name in affected | owners(changed, known)}
    if any(path.startswith("tests/") and not Path(path).name.startswith("test_") for path in changed):
        folders.add("tests")
    files = {path for path in changed if Path(path).name.startswith("test_") and (root / path).is_file()}
    subjects = {s for rule, found in ELSEWHERE.items() if any(re.fullmatch(rule, p) for p in changed) for s in found}
    files |= {f"tests/test_{subject}.py" for subject in {*subjects, *(WALKS if affected else ())}}
    names = {name for a in affected for name in (a, known[a].module, *known[a].offers)}
    named = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(names)) or r"(?!)")
    everywhere = [*root.glob("tests/test_*.py"), *root.glob("plugins/*/tests/test_*.py")]
    files |= {file.relative_to(root).as_posix() for file in everywhere if named.search(file.read_text("utf-8"))}
    return sorted(folders | {file for file in files if not any(file.startswith(f"{folder}/") for folder in folders)})


def changes(base: str, root: Path) -> list[str]:
    """Return the files that differ from the point where the work left `base`, those git does not know yet included.

    Raises:
        SystemExit: git knows no revision `base`.
    """

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
        return [path for path in done.stdout.split("\0") if path]

    origin = "".join(git("merge-base", base, "HEAD")).strip()
    return [
        *git("diff", "--name-only", "--no-renames", "-z", origin),
        *git("ls-files", "-o", "--exclude-standard", "-z"),
    ]


def main() -> int:
    """Run pytest on what is affected, with the options after `--`; 0 where nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default=os.environ.get("BASE") or "main", help="git revision; main")
    parser.add_argument("--list", action="store_true", help="print the test files and run nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the repository")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    found = tests(changes(options.base, options.root), options.root)
    print("\n".join(found) if found else "nothing that is tested has changed", flush=True)
    if options.list or not found:
        return 0
    code = subprocess.run([sys.executable, "-m", "pytest", *found, *given[end + 1 :]], cwd=options.root).returncode
    return 0 if code == 5 else code  # 5: a package without tests


if __name__ == "__main__":
    sys.exit(main())
