"""Assemble the changelog of a package from the fragments in changes/.

`python tools/changelog.py` prints what is pending; `python tools/changelog.py axon-xllama 0.2.0` moves the fragments of
axon-xllama, and what its changelog has under `## Unreleased`, into the section `## 0.2.0`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

NAME = re.compile(r"(?P<package>axon-[a-z0-9-]+)\.[a-z0-9-]+\.md")


def changelog(package: str, root: Path) -> Path:
    """Return the changelog of a package.

    Raises:
        ValueError: the repository has no such package.
    """
    file = (root if package == "axon-core" else root / "plugins" / package) / "CHANGELOG.md"
    if not file.is_file():
        raise ValueError(f"the repository has no package {package}, or that has no CHANGELOG.md")
    return file


def pending(root: Path) -> dict[str, list[Path]]:
    """Return the fragments of each package, in the order of their names.

    Raises:
        ValueError: a file is not named `<distribution>.<a few words>.md`, names no package here, or is empty.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted((root / "changes").iterdir()):
        if file.name == "README.md":
            continue
        match = NAME.fullmatch(file.name)
        if match is None:
            raise ValueError(f"a fragment is named <distribution>.<a few words>.md, got changes/{file.name}")
        changelog(match["package"], root)
        if not file.read_text("utf-8").strip():
            raise ValueError(f"changes/{file.name} is empty; say what is different now")
        found.setdefault(match["package"], []).append(file)
    return found


def item(text: str) -> str:
    """Return a fragment's text as an item of a list, wrapped at 120 characters."""
    return textwrap.fill(" ".join(text.removeprefix("- ").split()), 120, initial_indent="- ", subsequent_indent="  ",
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def release(text: str, version: str, items: list[str]) -> str:
    """Return a changelog whose `## Unreleased`, with the items after it, has become the section of `version`.

    Raises:
        ValueError: it already has that section, or nothing has changed.
    """
    if re.search(rf"^## {re.escape(version)}$", text, re.MULTILINE):
        raise ValueError(f"the changelog already has a section {version}; a release needs a new version")
    title, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    unreleased = [part.partition("\n")[2].strip() for part in sections if part.startswith("## Unreleased\n")]
    body = "\n".join(filter(None, [*unreleased, *items]))
    if not body:
        raise ValueError(f"nothing has changed: neither a fragment nor a line under Unreleased, so {version} is empty")
    kept = "".join(part for part in sections if not part.startswith("## Unreleased\n"))
    return f"{title.rstrip()}\n\n## {version}\n\n{body}\n\n{kept}".rstrip() + "\n"


def main(arguments: list[str], root: Path) -> int:
    """Print what is pending, or write the section of a version and delete its fragments."""
    fragments = pending(root)
    if not arguments:
        for package, files in fragments.items():
            print("\n".join([package, *(item(file.read_text("utf-8")) for file in files), ""]))
        return 0
    package, version = arguments
    file, files = changelog(package, root), fragments.get(package, [])
    text = release(file.read_text("utf-8"), version, [item(fragment.read_text("utf-8")) for fragment in files])
    file.write_text(text, "utf-8")
    for fragment in files:
        fragment.unlink()
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit("usage: python tools/changelog.py [PACKAGE VERSION]")
    try:
        sys.exit(main(sys.argv[1:], Path(__file__).parents[1]))
    except ValueError as problem:
        sys.exit(str(problem))
