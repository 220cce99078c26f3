"""Run the tests a change touches: those of the changed packages, of their dependents, and the tests that name them.

`python tools/affected.py BASE` compares the working tree with the git revision BASE (`main` by default); `--list`
prints the test files and runs nothing. What depends on what is read from the pyprojects.
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


@dataclass(frozen=True)
class Package:
    """A distribution of this repository."""

    name: str
    """Its name, as pip knows it."""
    folder: str
    """Where it lies, relative to the repository; empty for the core."""
    needs: frozenset[str]
    """The distributions of this repository it depends on, extras included."""

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
        found[str(project["name"])] = Package(str(project["name"]), place, needs)
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
    package, all of `tests/` where the core or what its tests share changed, and those of the pages where a page did.
    """
    changed, known = list(changed), packages(root)
    affected = with_dependents(owners(changed, known), known)
    shared = any(path.startswith("tests/") and not Path(path).name.startswith("test_") for path in changed)
    if CORE in affected or shared:
        return ["tests", "plugins", "axon_core"] if CORE in affected else ["tests"]
    folders = {known[name].folder for name in affected}
    files = {path for path in changed if Path(path).name.startswith("test_") and (root / path).is_file()}
    if any(path.endswith(".md") or path.startswith("docs/") for path in changed):
        files |= {"tests/test_readme.py", "tests/test_docs.py"}
    names = re.compile("|".join(rf"\b{re.escape(n)}\b" for a in affected for n in (a, known[a].module)) or r"(?!)")
    everywhere = [*root.glob("tests/test_*.py"), *root.glob("plugins/*/tests/test_*.py")]
    files |= {file.relative_to(root).as_posix() for file in everywhere if names.search(file.read_text("utf-8"))}
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
    options, pytest = parser.parse_known_args()
    found = tests(changes(options.base, options.root), options.root)
    print("\n".join(found) if found else "nothing that is tested has changed", flush=True)
    if options.list or not found:
        return 0
    given = [argument for argument in pytest if argument != "--"]
    code = subprocess.run([sys.executable, "-m", "pytest", *found, *given], cwd=options.root).returncode
    return 0 if code == 5 else code  # 5: a package without tests


if __name__ == "__main__":
    sys.exit(main())
