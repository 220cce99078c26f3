"""Print the oldest Python and torch that all packages here declare, as a workflow's outputs: `python=…`, `torch=…`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def oldest(root: Path) -> dict[str, str]:
    """Return the lower bounds that all packages of the repository agree on.

    Raises:
        ValueError: two packages declare different ones, or one declares none.
    """
    found: dict[str, set[str]] = {"python": set(), "torch": set()}
    for file in [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]:
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        needed = next((line for line in project["dependencies"] if line.startswith("torch>=")), "")
        bounds = {"python": project["requires-python"], "torch": needed.removeprefix("torch")}
        for name, versions in found.items():
            versions.add(bounds[name].removeprefix(">="))
    for name, versions in found.items():
        if len(versions) != 1 or not re.fullmatch(r"\d+(\.\d+)+", next(iter(versions))):
            raise ValueError(f"all packages need one and the same lower bound of {name}, got {sorted(versions)}")
    return {name: versions.pop() for name, versions in found.items()}


if __name__ == "__main__":
    try:
        print("\n".join(f"{name}={version}" for name, version in oldest(Path(__file__).parents[1]).items()))
    except ValueError as problem:
        sys.exit(str(problem))
