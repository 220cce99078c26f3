"""A laboratory as a new user has it: an environment of its own, and a folder to make plugins in."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "_build", "runs", "dist")


def environment_of_its_own(folder: Path, *sources: Path) -> dict[str, str]:
    """Make an environment that has all that is installed here, and keeps to itself what is installed into it.

    Code is taken from `sources` before what is installed. Return the variables that commands run in it with; pip asks
    no index, and builds with what is here.
    """
    venv.create(folder, symlinks=True)
    bin, here = folder / "bin", sysconfig.get_path("purelib")
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "a_sources.pth").write_text("".join(f"{source}\n" for source in sources))
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for name, code in {
        "pip": "-m pip",
        "axon": "-c 'from axon_core.cli import main; raise SystemExit(main())'",
    }.items():
        (bin / name).write_text(f'#!/bin/sh\nexec "{bin}/python" {code} "$@"\n')
        (bin / name).chmod(0o755)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def digest(folder: Path) -> dict[str, str]:
    """The checksum of every file, and the name of every folder, below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def outside(tree: dict[str, str], *new: str) -> dict[str, str]:
    """The part of a digest that lies outside the folders `new`."""
    return {path: checksum for path, checksum in tree.items() if not any(f"{path}/".startswith(f"{n}/") for n in new)}


def clone(folder: Path) -> Path:
    """Copy the repository, with what is not committed yet, but without what is built."""
    return shutil.copytree(ROOT, folder, ignore=_LEFT_OUT)


def sources_of(repository: Path) -> list[Path]:
    """Return the folders that the core's and the plugins' packages are imported from."""
    return [repository, *sorted(repository.glob("plugins/axon-*"))]


@dataclass(frozen=True)
class Lab:
    """An environment, and the folder that commands run in."""

    folder: Path
    variables: dict[str, str]

    @staticmethod
    def make(folder: Path, environment: Path, *sources: Path) -> Lab:
        """Return a laboratory whose environment is made in the folder `environment`."""
        return Lab(folder, environment_of_its_own(environment, *sources))

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run a command, which must succeed, and return what it printed."""
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = os.environ | quiet | self.variables
        arguments = [shutil.which(command[0], path=self.variables["PATH"]) or command[0], *command[1:]]
        done = subprocess.run(
            arguments, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
