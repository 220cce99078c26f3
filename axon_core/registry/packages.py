"""A plugin's package on disk, and what its card says about its commands: found without importing the plugin.

What a listing needs quickly is here, without the libraries that check a card as a whole (`axon_core.papers.card`).
"""

from __future__ import annotations

from pathlib import Path

from axon_core.documents import parse_toml
from axon_core.errors import PluginLoadError
from axon_core.registry.discovery import Entry, discover
from axon_core.registry.installed import find_module

__all__ = ["CARD", "command_line", "package_folders"]

CARD = "paper.toml"
"""The card's name, beside the package's modules."""


def command_line(entry: Entry) -> str:
    """Return what `axon --help` shows of a plugin's command.

    That is its line in the table `[command]` of a card of the same distribution:

        [command]
        fly = "Fly a kite."

    If there is none, or the card cannot be read, it is the plugin's name and version.
    """
    for paper in discover().entries("paper"):
        if paper.distribution == entry.distribution and (line := _line(paper, entry.key)):
            return line
    return f"From {entry.source}."


def package_folders(entry: Entry) -> list[Path]:
    """Return the folders of the package that a paper's `entry` names, including those of an editable install.

    None of its code is run: `importlib.util.find_spec("a.b")` would import `a`, so each finder is asked part by part.

    Raises:
        PluginLoadError: there is no such package.
    """
    name, folders = "", None
    for part in entry.target.split("."):
        name = f"{name}.{part}" if name else part
        if (spec := find_module(name, folders)) is None or spec.submodule_search_locations is None:
            raise PluginLoadError(
                f"the paper {entry.key!r} of {entry.source} names the package {entry.target}, but "
                f"{'there is none' if spec is None else f'{name} is a module and not a package'}. "
                f"Reinstall it: pip install --force-reinstall {entry.distribution}"
            )
        folders = list(spec.submodule_search_locations)
    return [Path(folder) for folder in folders or ()]


def _line(paper: Entry, command: str) -> str | None:
    """Return what the card of `paper` says about a command, on one line; None if it says nothing or is damaged."""
    try:
        file = next(path for folder in package_folders(paper) if (path := folder / CARD).is_file())
        line = parse_toml(file.read_text("utf-8-sig"))["command"][command]
        return " ".join(line.split())
    except Exception:  # no card may break a listing: `axon papers` and `axon doctor` say what is wrong with it
        return None
