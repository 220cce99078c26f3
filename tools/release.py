"""Check that a release tag such as `axon-xllama-v0.2.0` matches its package's version, and print the package's path.

Prints `folder=…` and `tests=…`, as a workflow's outputs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def release(tag: str, root: Path) -> dict[str, str]:
    """Return the folder and the tests of the package that `tag` releases.

    Raises:
        ValueError: no package has that name, its pyproject has another version, or its changelog has no such section.
    """
    match = re.fullmatch(r"(?P<name>axon-[a-z0-9-]+)-v(?P<version>\d+\.\d+\.\d+((a|b|rc)\d+)?)", tag)
    if match is None:
        raise ValueError(f"a release tag is <package>-v<version>, as in axon-xllama-v0.2.0; got {tag}")
    name, version = match["name"], match["version"]
    folder = root if name == "axon-core" else root / "plugins" / name
    if not (folder / "pyproject.toml").is_file():
        raise ValueError(f"the tag {tag} names the package {name}, but there is none in plugins/")
    stated = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if stated != version:
        raise ValueError(f"the tag {tag} is for {version}, but the pyproject of {name} says {stated}; make them agree")
    if not re.search(rf"^## {re.escape(version)}\b", (folder / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        raise ValueError(f"the changelog of {name} has no section '## {version}'; say there what changed")
    place = folder.relative_to(root).as_posix()
    return {"folder": place, "tests": "tests axon_core" if name == "axon-core" else place}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/release.py TAG")
    try:
        found = release(sys.argv[1], Path(__file__).parents[1])
    except ValueError as problem:
        sys.exit(str(problem))
    print("\n".join(f"{key}={value}" for key, value in found.items()))
